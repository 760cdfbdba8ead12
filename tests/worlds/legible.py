"""What cannot be read of a figure: letters too small, text over text, text that leaves the canvas."""

from collections.abc import Iterator
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 6.5  # points; sub- and superscripts are smaller
_SLACK = 0.12  # of its height, by which the box of a text is larger than its letters


def illegible(figure: Figure) -> list[str]:
    """Return what is wrong with the text of a figure as it is drawn, a line each."""
    boxes = drawn_texts(figure)
    width, height = figure.canvas.get_width_height()
    found = [f"{text!r} has {size} points" for text, size, _ in boxes if size < SMALLEST]
    for text, _, box in boxes:
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5:
            found.append(f"{text!r} leaves the canvas: {box.extents.round(1)}")
    for (one, _, box), (other, _, its) in combinations(boxes, 2):
        if Bbox.intersection(box, its) is not None:
            found.append(f"{one!r} lies over {other!r}")
    return found


def drawn_texts(figure: Figure) -> list[tuple[str, float, Bbox]]:
    """Return every text that is drawn, its size in points, and the box of its letters in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout
    drawn: list[Text] = []
    plain = Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), plain(text, renderer))[1])
        canvas.draw()
    renderer = canvas.get_renderer()
    return list(_boxes((text for text in drawn if text.get_text().strip() and text.get_visible()), renderer))


def _boxes(texts: Iterator[Text], renderer: object) -> Iterator[tuple[str, float, Bbox]]:
    for text in texts:
        box = text.get_window_extent(renderer)
        slack = _SLACK * text.get_fontsize() * text.get_figure().dpi / 72
        yield text.get_text(), text.get_fontsize(), Bbox.from_extents(box.x0, box.y0 + slack, box.x1, box.y1 - slack)
