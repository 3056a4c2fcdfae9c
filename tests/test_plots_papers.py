"""The page that figures of reproductions share: title, verdict, caption, and names at the ends of curves."""

import itertools
import math

import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from implicit_reg.plots.papers import MARKS, end_labels, page, paper_figure
from implicit_reg.plots.style import to_png

RECORD = {"claim": "It $holds$ for every step size. " * 4, "verdict": "partly", "scale": "fast"}


def extents(figure, texts):
    figure.draw_without_rendering()
    # Of an annotation the words alone, without the line that leads to its curve.
    return [Text.get_window_extent(text) if isinstance(text, Text) else text.get_window_extent() for text in texts]


@pytest.mark.parametrize("verdict", MARKS)
def test_title_verdict_and_caption_do_not_collide(verdict):
    with page({**RECORD, "verdict": verdict}, note="Mean over 5 seeds; " * 12) as figure:
        ax = figure.subplots()
        ax.set_title("A panel")
    mark = next(text for text in figure.texts if text.get_text() == " ".join(MARKS[verdict][::2]))
    boxes = extents(figure, [figure._suptitle, mark, figure._supxlabel, ax.title, ax.xaxis])
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    assert figure.get_suptitle().replace("\\$", "$").split() == RECORD["claim"].split()
    assert figure.get_supxlabel().endswith("Scale: fast.")


def test_labels_stand_at_the_ends_of_their_curves_in_their_colors_and_apart():
    with page(RECORD, height=3.0, title="Short") as figure:
        ax = figure.subplots()
        ax.set_yscale("log")
        for k, name in enumerate("abcde"):
            ax.plot([0, 1, 2], [1.0, 0.5, 0.1 * (1 + 1e-3 * k)], label=name)
        ax.plot([0, 1, 2], [1.0, 2.0, math.nan], label="broken off")
        ax.plot([0, 2], [3.0, 3.0])  # has no label
        end_labels(ax)
    texts = {text.get_text(): text for text in ax.texts}
    assert list(texts) == [*"abcde", "broken off"]
    boxes = dict(zip(texts, extents(figure, texts.values()), strict=True))
    for lower, upper in itertools.pairwise("abcde"):
        assert boxes[lower].y1 <= boxes[upper].y0 + 0.5
    assert all(box.x0 >= ax.bbox.x1 for box in boxes.values())
    assert all(box.x1 <= figure.bbox.x1 for box in boxes.values())
    colors = {str(line.get_label()): to_hex(line.get_color()) for line in ax.get_lines()}
    assert all(text.get_color() == colors[name] for name, text in texts.items())
    end = ax.transData.transform((1.0, 2.0))[1]
    assert abs(boxes["broken off"].y0 + boxes["broken off"].height / 2 - end) < 2 * boxes["broken off"].height
    assert to_png(figure).startswith(b"\x89PNG")


def test_a_record_of_another_command_is_refused():
    with pytest.raises(ValueError, match=r"paper_figure: unknown experiment 'adum'\. Did you mean 'adam'"):
        paper_figure({"name": "adum"})
