"""The page: everything of the record is on it, escaped, and nothing on it comes from elsewhere."""

from __future__ import annotations

import copy
import html
import re
from html.parser import HTMLParser

import fake_records
import pytest

from implicit_reg import plots
from implicit_reg.plots.record import inequality
from implicit_reg.report import verify_report

PNG = b"\x89PNG\r\n\x1a\nrest"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'
SECTION = r'<section class="check" id="([^"]+)">(.*?)</section>'
VOID = {"meta", "br", "img", "hr"}


class Page(HTMLParser):
    """What a browser would make of it: tags in balance, attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.stack
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)


@pytest.fixture(scope="module")
def record():
    return fake_records.verify_record()


@pytest.fixture(scope="module")
def troubled():
    return fake_records.troubled_record()


@pytest.mark.parametrize(
    ("make", "headline", "counts"),
    [
        (fake_records.verify_record, "Every prediction holds", "7 predictions in 93 seconds: 7 hold. 36 statements"),
        (fake_records.troubled_record, "A prediction fails", "8 predictions in 93 seconds: 5 hold, 2 fail, 1 could"),
    ],
)
def test_headline(make, headline, counts):
    page = Page(verify_report(make(), {}))
    assert headline in page.text
    assert counts in page.text
    assert "preset quick" in page.text


def test_what_does_not_hold_comes_first(troubled, record):
    head = verify_report(troubled, {}).split("<section")[0]
    words = Page(head + "</main></body></html>").text
    assert "fails main statement on nonquadratic: 2 terms at fixed time: order 1.46 where 2 was predicted" in words
    assert "could not measure main statement on digits-tanh: 3 terms after one step: the error 1.0e-13 is too" in words
    assert "fails distance to the iterates, per parameter on digits-tanh: 0.074 where at most 0.05 was wanted" in words
    assert 'href="#check-backstitch"' in head
    assert "findings" not in verify_report(record, {}).split("</style>")[1]


def test_every_number_is_there(troubled):
    text = verify_report(troubled, {})
    pages = dict(re.findall(SECTION, text, re.DOTALL))
    for check in troubled["checks"]:
        details = check["details"]
        page = Page(pages[f"check-{check['name']}"])
        assert details["title"] in page.words
        for key in ("claim", "formula", "time_scale", "validity"):
            assert details[key] in page.text
        assert check["criterion"] in page.text
        assert (f"[{details['source']}]" if details["source"] else "derived for this library") in page.words
        for case in details["cases"]:
            assert f"{case['num_params']} parameters" in page.text
            assert case["statement"] in page.text
            if case["kind"] == "order":
                assert_order_case(case, page)
            else:
                assert_criterion_case(case, page)
    page = Page(text)
    assert "1.00 (1), 1.46 (2)" in " ".join(page.text.split()).replace(" ,", ",")
    for key in ("environment", "config"):
        for name, value in troubled[key].items():
            assert name in page.text
            assert ("none" if value is None else str(value)) in page.text
    assert page.tags.count("section") == 1 + len(troubled["checks"]) + 1


def assert_order_case(case, page):
    for h in case["h"]:
        assert f"{h:.4g}" in page.words
    for row in case["truncations"]:
        for curve in filter(None, (row["fixed_time"], row["one_step"])):
            for value in filter(None, curve["error"]):
                assert f"{value:.2e}" in page.words
            for key in ("measured", "mutant"):
                if curve[key]:
                    assert f"{curve[key]:.2f}" in page.words
            assert (curve["reason"] or "") in page.text
    validity = case["validity"]
    ends = [f"{validity['x'][0]:.2g} … {validity['x'][-1]:.2g}"]
    ends += [f"{case['h'][0] * validity[key]:.2g} … {case['h'][-1] * validity[key]:.2g}" for key in ("low", "high")]
    assert f"{validity['quantity']} = {ends[0]}" in page.words
    assert {*ends[1:], validity["band"]} <= set(page.words)
    for key, form in (("term_ratio", ".2g"), ("next_term", ".3g")):
        if validity[key]:
            assert ", ".join("–" if v is None else format(v, form) for v in validity[key]) in page.words
    if validity["above_floor"]:
        assert f"{validity['above_floor']:.1e}" in page.words


def assert_criterion_case(case, page):
    assert {case["wanted"], inequality(case)} <= set(page.words)
    if case["mutant"] is not None:
        assert f"{case['mutant']:.3g}" in page.words
    assert (case["reason"] or "") in page.text
    for name, value in case["numbers"].items():
        assert name in page.words
        assert ("yes" if value is True else f"{value:.4g}") in page.words


def test_missing_values_are_dashes(troubled):
    page = Page(verify_report(troubled, {}))
    assert "None" not in page.text
    assert "nan" not in page.text.split()
    orders = [
        curve
        for check in troubled["checks"]
        for case in check["details"]["cases"]
        if case["kind"] == "order"
        for row in case["truncations"]
        for curve in (row["fixed_time"], row["one_step"])
        if curve
    ]
    # The errors and orders, an order that the contents repeat, the ratios of a row with one term (two for each loss),
    # the distance to the floor, and a mutant.
    missing = sum((curve["error"] + [curve["measured"]]).count(None) for curve in orders)
    assert page.words.count("–") == missing + 4 + 1 + 1


def test_pages_follow_each_other(record):
    text = verify_report(record, {})
    sections = re.findall(SECTION, text, re.DOTALL)
    names = [f"check-{check['name']}" for check in record["checks"]]
    assert [identifier for identifier, _ in sections] == names
    for k, (_, body) in enumerate(sections):
        neighbors = [*names[max(0, k - 1) : k], "contents", *names[k + 1 : k + 2]]
        assert re.findall(r'<a href="#([^"]+)">', body) == neighbors
        assert f"{k + 1} of {len(names)}" in body
    contents = text.split('id="contents"')[1].split("</section>")[0]
    assert re.findall(r'href="#([^"]+)"', contents) == names
    assert "section.check, section.contents { break-before: page" in text


def test_pictures_are_inside(record):
    figures = {"strip": SVG, "errors": PNG, "check-gd": SVG, "trajectories": PNG, "extra": SVG}
    page = Page(verify_report(record, figures))
    assert (page.tags.count("svg"), page.tags.count("img")) == (3, 2)
    assert "extra" in page.text
    gd = verify_report(record, figures).split('id="check-gd"')[1].split("</section>")[0]
    assert gd.count("<svg") == 1
    assert Page(verify_report(record, {})).tags.count("figure") == 0
    described = [name for tag, name, _ in page.attributes if tag in ("svg", "img") and name in ("alt", "aria-label")]
    assert len(described) == 5


def test_self_contained_with_real_pictures(record):
    small = record | {"checks": [fake_records.find(record, name) for name in ("gd", "principal-flow")]}
    figures = plots.verify_figures(small)
    pictures = {name: plots.to_svg(figure, name) for name, figure in figures.items()}
    text = verify_report(small, pictures | {"photo": plots.to_png(figures["strip"], dpi=40)})
    page = Page(text)
    assert page.tags.count("svg") == 5
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not name.startswith("on")
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    targets = [value[1:] for tag, name, value in page.attributes if tag == "a" and name in ("href", "xlink:href")]
    assert set(targets) <= set(identifiers)
    assert targets.count("check-gd") > 2  # in the contents, from its neighbor, and in the strip itself
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


EVIL = "<script>alert('x')</script>\"&"


def poison(value):
    """The same record with every text in it hostile, but for the words that the format fixes."""
    if isinstance(value, dict):
        fixed = ("format", "verdict", "kind")
        hostile = {key: item if key in fixed else poison(item) for key, item in value.items()}
        return hostile | {key: value[key] | {EVIL: EVIL} for key in ("environment", "config") if key in value}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_hostile_names_are_escaped(troubled):
    record = poison(troubled)
    page_text = verify_report(record, {"strip": SVG, EVIL: PNG})
    page = Page(page_text)
    assert "script" not in page.tags
    assert "<script" not in page_text
    assert page_text.count(html.escape(EVIL, quote=True)) > 50
    assert EVIL in page.text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_hostile_names_in_pictures(record):
    small = poison(copy.deepcopy(record | {"checks": record["checks"][:1]}))
    pictures = {name: plots.to_svg(figure, name) for name, figure in plots.verify_figures(small).items()}
    page = Page(verify_report(small, pictures))
    assert "script" not in page.tags


@pytest.mark.parametrize(
    "picture",
    [
        "<svg><script>alert(1)</script></svg>",
        '<svg onload="alert(1)"></svg>',
        '<svg><a href="https://example.org">x</a></svg>',
        '<svg><use xlink:href="other.svg#x"/></svg>',
        "<svg><foreignObject/></svg>",
        '<svg><rect style="fill: url(https://example.org/x)"/></svg>',
        "<svg><style>@import 'x'</style></svg>",
        '<svg><text onload="f()">x</text></svg>',
        "<svg><text><a href='https://example.org'>x</a></text></svg>",
        "<p>no picture</p>",
        b"no picture",
    ],
)
def test_pictures_that_run_or_fetch_are_refused(record, picture):
    with pytest.raises(ValueError, match=r"figures\['strip'\]"):
        verify_report(record, {"strip": picture})


def test_words_in_a_picture_are_only_words(record):
    picture = "<svg><text>trained once = 1, url(x), javascript: @import</text></svg>"
    assert "trained once = 1" in Page(verify_report(record, {"strip": picture})).text


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 1}])
def test_other_records_are_refused(record, change):
    with pytest.raises(ValueError, match=r"implicit_reg\.verify.*version 2.*results\.json"):
        verify_report(record | change, {})


def test_command_to_run_again(record):
    command = "implicit-reg verify --only gd"
    assert command in Page(verify_report(record | {"config": {"command": command}}, {})).text
    assert "implicit-reg verify" in Page(verify_report(record | {"config": {}, "environment": {}}, {})).text
