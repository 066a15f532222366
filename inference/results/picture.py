"""The picture that a radiologist sees: the radiograph, the findings with their probability, the legend.

No identity is drawn; the viewer shows it from the instance's attributes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inference.pixels import read_grey
from inference.preprocessing import PreprocessingSpec, shown
from inference.resampling import fit, resize
from inference.results.context import RESEARCH_USE

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.card import Finding, ModelCard
    from inference.results.context import ResultContext

PICTURE_EDGE: Final = 1024
MIN_WIDTH: Final = 840
MAX_FINDINGS: Final = 6
HEADER: Final = 64
_ROW: Final = 140
FOOTER: Final = 92
MARGIN: Final = 32
BLACK: Final = (0, 0, 0)
PANEL: Final = (18, 23, 29)
LINE: Final = (52, 62, 73)
TEXT: Final = (236, 240, 244)
QUIET: Final = (157, 170, 184)
_ALERT: Final = (255, 178, 66)
_CALM: Final = (112, 178, 222)

Color = tuple[int, int, int]
_AS_SEEN: Final = PreprocessingSpec(
    intensity="voi_or_percentile", color="luminance", lower_percentile=0.1, upper_percentile=99.9
)


def render(context: ResultContext) -> npt.NDArray[np.uint8]:
    """Draw the leading picture with the model's findings.

    Parameters
    ----------
    context : ResultContext
        The answers; the picture with the highest probability is shown.

    Returns
    -------
    ndarray
        uint8 RGB, shape (rows, columns, 3).
    """
    picture = as_seen(context.leading.source)
    order = sorted(range(len(context.findings)), key=lambda index: -context.leading.probabilities[index])
    rows = [(context.findings[index], context.leading.probabilities[index]) for index in order[:MAX_FINDINGS]]
    width = max(MIN_WIDTH, picture.shape[1])
    height = HEADER + picture.shape[0] + len(rows) * _ROW + FOOTER
    canvas = Image.new("RGB", (width, height), BLACK)
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, HEADER))
    draw = ImageDraw.Draw(canvas)
    draw_header(draw, width, context.card)
    top = HEADER + picture.shape[0]
    draw.rectangle((0, top, width, height), fill=PANEL)
    for finding, probability in rows:
        _finding(draw, top, width, finding, probability)
        top += _ROW
    _footer(draw, top, width, context)
    return np.asarray(canvas, dtype=np.uint8)


def as_seen(ds: Dataset, edge: int = PICTURE_EDGE) -> npt.NDArray[np.uint8]:
    """Return an instance as a viewer would first show it, its longer side ``edge`` pixels.

    Parameters
    ----------
    ds : Dataset
        A single-frame picture.
    edge : int
        Length of the longer side.

    Returns
    -------
    ndarray
        uint8, shape (rows, columns).
    """
    image = read_grey(ds, accept_color=True)
    white = shown(ds, image, _AS_SEEN)
    rows, columns = fit(white.shape[0], white.shape[1], edge, edge, image.pixel_aspect)
    return (resize(white, rows, columns) >> 8).astype(np.uint8)


def draw_header(draw: ImageDraw.ImageDraw, width: int, card: ModelCard) -> None:
    """Say what no result of ours may leave out, and which model it is by."""
    draw.rectangle((0, 0, width, HEADER - 1), fill=PANEL)
    draw.line((0, HEADER - 1, width, HEADER - 1), fill=LINE)
    font = font_of(30)
    draw.text(
        (MARGIN, HEADER // 2), RESEARCH_USE, _ALERT, font, anchor="lm", stroke_width=0.4, stroke_fill=_ALERT
    )
    room = width - 3 * MARGIN - int(draw.textlength(RESEARCH_USE, font))
    label = fitted(draw, f"{card.name} {card.version}", font_of(24), room)
    draw.text((width - MARGIN, HEADER // 2), label, QUIET, font_of(24), anchor="rm")


def _finding(draw: ImageDraw.ImageDraw, top: int, width: int, finding: Finding, probability: float) -> None:
    called = probability >= finding.threshold
    color = _ALERT if called else _CALM
    percent = _percent(probability, finding.threshold)
    base = top + 58
    draw.text(
        (width - MARGIN, base), percent, color, font_of(52), anchor="rs", stroke_width=0.5, stroke_fill=color
    )
    room = width - 3 * MARGIN - int(draw.textlength(percent, font_of(52)))
    draw.text(
        (MARGIN, base), fitted(draw, finding.meaning, font_of(40), room), TEXT, font_of(40), anchor="ls"
    )
    left, right, bar = MARGIN, width - MARGIN, top + 76
    draw.rounded_rectangle((left, bar, right, bar + 14), 7, fill=LINE)
    length = max(14, round((right - left) * min(1.0, max(0.0, probability))))
    draw.rounded_rectangle((left, bar, left + length, bar + 14), 7, fill=color)
    mark = left + round((right - left) * finding.threshold)
    draw.line((mark, bar - 6, mark, bar + 20), fill=TEXT, width=3)
    note = f"{'at or above' if called else 'below'} the model's threshold of {_percent(finding.threshold)}"
    draw.text((left, bar + 46), note, QUIET, font_of(22), anchor="ls")


def _footer(draw: ImageDraw.ImageDraw, top: int, width: int, context: ResultContext) -> None:
    count = len(context.answers)
    about = [f"Model package {context.package_sha256[:12]}"]
    if count > 1:
        about.append(f"highest of {count} pictures")
    if context.unreadable:
        about.append(f"{context.unreadable} picture{'s' if context.unreadable > 1 else ''} could not be read")
    first = "Not for diagnosis or treatment. The probability is a model's output under investigation."
    draw_footer(draw, top, width, first, ", ".join(about))


def draw_footer(draw: ImageDraw.ImageDraw, top: int, width: int, first: str, second: str) -> None:
    """Draw two lines: what this is not for, and where it comes from."""
    draw.line((MARGIN, top + 4, width - MARGIN, top + 4), fill=LINE)
    room = width - 2 * MARGIN
    for line, color, base in ((first, TEXT, 40), (second, QUIET, 72)):
        draw.text(
            (MARGIN, top + base), fitted(draw, line, font_of(21), room), color, font_of(21), anchor="ls"
        )


def _percent(share: float, threshold: float | None = None) -> str:
    """Say whole percents, certainty only of what is certain, a decimal where the threshold is near."""
    value = round(100 * share)
    if threshold is not None and share < threshold and value == round(100 * threshold):
        return f"{math.floor(1000 * share) / 10:.1f} %"
    if share < 1 and value == 100:
        return "> 99 %"
    if share > 0 and value == 0:
        return "< 1 %"
    return f"{value} %"


def font_of(size: int) -> Any:
    """Return the font at a size in pixels."""
    return ImageFont.load_default(size)


def fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, room: int) -> str:
    """Cut a text off where it does not fit."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}…", font) > room:
        text = text[:-1]
    return f"{text.rstrip()}…"
