"""The page: everything of the record is on it, escaped, and nothing on it comes from elsewhere."""

from __future__ import annotations

import copy
import html
import re
from html.parser import HTMLParser

import fake_records
import pytest

from implicit_reg import plots
from implicit_reg.report import verify_report

PNG = b"\x89PNG\r\n\x1a\nrest"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'
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
        (fake_records.verify_record, "Every prediction holds", "5 hold"),
        (fake_records.troubled_record, "A prediction fails", "4 hold, 1 fails, 1 could not measure"),
    ],
)
def test_headline(make, headline, counts):
    page = Page(verify_report(make(), {}))
    assert headline in page.text
    assert f"in 93 seconds: {counts}." in page.text


def test_every_number_is_there(troubled):
    page = Page(verify_report(troubled, {}))
    for check in troubled["checks"]:
        details = check["details"]
        assert details["title"] in page.text
        assert details["claim"] in page.text
        assert f"[{details['source']}]" in page.text
        assert (details["formula"] or "") in page.text
        for loss in details.get("losses", []):
            assert f"{loss['name']}, {loss['num_params']} parameters" in page.text
            for h in loss["h"]:
                assert f"{h:.4g}" in page.words
            for row in loss["truncations"]:
                for curve in (row["fixed_time"], row["one_step"]):
                    for value in filter(None, curve["error"]):
                        assert f"{value:.2e}" in page.words
                    if curve["measured"]:
                        assert f"{curve['measured']:.2f}" in page.words
                    if curve["mutant"]:
                        assert f"{curve['mutant']:.2f}" in page.words
                    assert (curve["reason"] or "") in page.text
            assert "error 1.4e-16, tolerance 1e-12" in page.text
    assert "1.00, 2.00, 1.46" in page.text
    assert "the mean loss stays within 1 % of the level" in page.text
    for key in ("environment", "config"):
        for name, value in troubled[key].items():
            assert name in page.text
            assert ("none" if value is None else str(value)) in page.text
    assert page.tags.count("section") == 1 + len(troubled["checks"]) + 1


def test_missing_values_are_dashes(troubled):
    page = Page(verify_report(troubled, {}))
    missing = sum(
        (curve["error"] + [curve["measured"]]).count(None)
        for check in troubled["checks"]
        for loss in check["details"].get("losses", [])
        for row in loss["truncations"]
        for curve in (row["fixed_time"], row["one_step"])
    )
    assert page.words.count("–") == missing
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_pictures_are_inside(record):
    figures = {"strip": SVG, "errors": PNG, "errors-gd": SVG, "trajectories": PNG, "extra": SVG}
    page = Page(verify_report(record, figures))
    assert (page.tags.count("svg"), page.tags.count("img")) == (3, 2)
    assert "extra" in page.text
    gd = verify_report(record, figures).split('id="check-gd"')[1].split("</section>")[0]
    assert gd.count("<svg") == 1
    assert Page(verify_report(record, {})).tags.count("figure") == 0
    described = [name for tag, name, _ in page.attributes if tag in ("svg", "img") and name in ("alt", "aria-label")]
    assert len(described) == 5


def test_self_contained_with_real_pictures(record):
    small = record | {"checks": record["checks"][:1]}
    figures = plots.verify_figures(small)
    pictures = {name: plots.to_svg(figure, name) for name, figure in figures.items()}
    page = Page(verify_report(small, pictures | {"photo": plots.to_png(figures["strip"], dpi=40)}))
    assert page.tags.count("svg") == 4
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not name.startswith("on")
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    targets = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert set(targets) <= set(identifiers)
    style = re.search(r"<style>(.*?)</style>", verify_report(record, {}), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


EVIL = "<script>alert('x')</script>\"&"


def poison(value):
    """The same record with every text in it hostile, but for the words that the format fixes."""
    if isinstance(value, dict):
        hostile = {key: item if key in ("format", "verdict") else poison(item) for key, item in value.items()}
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
        "<p>no picture</p>",
        b"no picture",
    ],
)
def test_pictures_that_run_or_fetch_are_refused(record, picture):
    with pytest.raises(ValueError, match=r"figures\['strip'\]"):
        verify_report(record, {"strip": picture})


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}])
def test_other_records_are_refused(record, change):
    with pytest.raises(ValueError, match=r"implicit_reg\.verify.*version 1.*results\.json"):
        verify_report(record | change, {})


def test_command_to_run_again(record):
    command = "implicit-reg verify --only gd"
    assert command in Page(verify_report(record | {"config": {"command": command}}, {})).text
    assert "implicit-reg verify" in Page(verify_report(record | {"config": {}, "environment": {}}, {})).text
