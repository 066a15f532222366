"""Line charts as SVG, drawn by the server: no script, the panel's own colours in light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from appliance.web.panel.markup import el, join
from appliance.web.panel.parts import nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 400
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 30
COLOURS: Final = 6


@dataclass(frozen=True)
class Point:
    """A value at a round, with the bounds of its confidence interval where they are known."""

    x: int
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named curve."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """The span of one axis and where its guides stand."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return where a value stands between the ends, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], *, within: tuple[float, float] | None = None, parts: int = 4) -> Axis:
    """Choose round ends and guides that hold all values, inside ``within`` if given."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    step = _round_step((high - low) / parts)
    first, last = int(low // step), int(-(-high // step))
    bounds = (first * step, last * step)
    if within is not None:
        bounds = (max(bounds[0], within[0]), min(bounds[1], within[1]))
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(
        bounds[0], bounds[1], tuple(tick for tick in ticks if bounds[0] - 1e-9 <= tick <= bounds[1] + 1e-9)
    )


def _round_step(rough: float) -> float:
    power = 1e-9
    while power * 10 <= rough:
        power *= 10
    return next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough), 10 * power)


def lines(
    title: str, series: Sequence[Series], *, rounds: int, within: tuple[float, float] | None = None
) -> Markup:
    """Draw curves over rounds, with their confidence bands.

    Parameters
    ----------
    title : str
        What the values are; also the text for those who cannot see the picture.
    series : sequence of Series
    rounds : int
        Last round of the axis, 1 or more.
    within : (float, float), optional
        Bounds that the value cannot leave.
    """
    values = [
        value
        for one in series
        for point in one.points
        for value in (point.y, point.low, point.high)
        if value is not None
    ]
    if not values:
        return nothing("No figure yet.", "The curve begins with the first finished round.")
    vertical = axis(values, within=within)
    last = max(rounds, *(point.x for one in series for point in one.points))
    body = join(
        (_frame(vertical, last), (_curve(one, number, vertical, last) for number, one in enumerate(series)))
    )
    svg = el("svg", el("title", _words(title, series)), body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return el("figure", _legend(series), svg, class_="chart")


def _words(title: str, series: Sequence[Series]) -> str:
    ends = (f"{one.name} {one.points[-1].y:.3f} at round {one.points[-1].x}" for one in series if one.points)
    return f"{title}: {', '.join(ends)}"


def _x(x: int, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * ((x - 1) / max(1, last - 1) if last > 1 else 0.5)


def _y(value: float, vertical: Axis) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - vertical.share(value))


def _frame(vertical: Axis, last: int) -> Markup:
    bottom = HEIGHT - BOTTOM
    parts: list[Markup] = []
    digits = 2 if vertical.high - vertical.low >= 0.05 else 3
    for tick in vertical.ticks:
        y = f"{_y(tick, vertical):.1f}"
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="guide"))
        parts.append(el("text", f"{tick:.{digits}f}", x=LEFT - 7, y=float(y) + 4, text_anchor="end"))
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    step = max(1, -(-last // 10))
    names = (
        el("text", number, x=f"{_x(number, last):.1f}", y=bottom + 17, text_anchor="middle")
        for number in range(1, last + 1, step)
    )
    return join((parts, names))


def _curve(one: Series, number: int, vertical: Axis, last: int) -> Markup:
    if not one.points:
        return Markup("")
    colour = f"var(--c{number % COLOURS + 1})"
    places = [(_x(point.x, last), _y(point.y, vertical)) for point in one.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = (
        el(
            "circle",
            el("title", _dot_words(point)),
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r="3.5",
            class_="point",
            style=f"fill:{colour}",
        )
        for point, (x, y) in zip(one.points, places, strict=True)
    )
    return join(
        (
            _band(one, colour, vertical, last),
            el("path", d=path, class_="curve", style=f"stroke:{colour}"),
            dots,
        )
    )


def _dot_words(point: Point) -> str:
    interval = (
        f" ({point.low:.3f} to {point.high:.3f})" if point.low is not None and point.high is not None else ""
    )
    return f"Round {point.x}: {point.y:.3f}{interval}"


def _band(one: Series, colour: str, vertical: Axis, last: int) -> Markup | None:
    known = [
        (point.x, point.low, point.high)
        for point in one.points
        if point.low is not None and point.high is not None
    ]
    if len(known) < 2:
        return None
    upper = [f"{_x(x, last):.1f} {_y(high, vertical):.1f}" for x, _, high in known]
    lower = [f"{_x(x, last):.1f} {_y(low, vertical):.1f}" for x, low, _ in reversed(known)]
    return el("path", d="M" + "L".join(upper + lower) + "Z", class_="band", style=f"fill:{colour}")


def _legend(series: Sequence[Series]) -> Markup:
    items = (
        el("span", el("i", style=f"background:var(--c{number % COLOURS + 1})"), one.name)
        for number, one in enumerate(series)
    )
    return el("figcaption", items, class_="legend")
