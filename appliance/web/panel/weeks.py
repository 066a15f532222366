"""Pictures of an hourly traffic: bars of the last days, a field of the hours of a week."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.web.panel.markup import el

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
WIDTH, HEIGHT = 168, 26
CELL, GAP, LEFT, TOP = 16, 2, 34, 16


def bars(words: str, hours: Sequence[int]) -> Markup:
    """Draw 168 hours as bars, the present one at the right; day by day a guide."""
    most = max([*hours, 1])
    path = "".join(
        f"M{number + 0.5:.1f} {HEIGHT}v-{max(1.5, (HEIGHT - 2) * (value / most) ** 0.5):.1f}"
        for number, value in enumerate(hours)
        if value
    )
    guides = "".join(f"M{WIDTH - 24 * day:.0f} {HEIGHT}v-{HEIGHT}" for day in range(1, 7))
    return el(
        "svg",
        el("title", words),
        el("path", d=guides, class_="guide"),
        el("path", d=f"M0 {HEIGHT - 0.5}h{WIDTH}", class_="axis"),
        el("path", d=path, class_="bars") if path else None,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="spark",
    )


def week(words: str, profile: Sequence[float]) -> Markup:
    """Draw the hours of a week as a field: the fuller a cell, the more comes at that hour."""
    most = max([*profile, 1e-9])
    cells = []
    for day, name in enumerate(DAYS):
        y = TOP + day * (CELL + GAP)
        cells.append(el("text", name, x=LEFT - 8, y=y + 12, text_anchor="end"))
        for hour in range(24):
            value = profile[24 * day + hour]
            said = f"{name} {hour:02d}:00 to {(hour + 1) % 24:02d}:00: {value:.1f} instances on average"
            strength = 0.12 + 0.88 * (value / most) ** 0.5 if value else 0.0
            cells.append(
                el(
                    "rect",
                    el("title", said),
                    x=LEFT + hour * (CELL + GAP),
                    y=y,
                    width=CELL,
                    height=CELL,
                    rx=2,
                    class_="cell" if value else "cell empty",
                    style=f"fill-opacity:{strength:.2f}" if value else None,
                )
            )
    names = [
        el("text", f"{hour:02d}", x=LEFT + hour * (CELL + GAP) + CELL / 2, y=10, text_anchor="middle")
        for hour in range(0, 24, 3)
    ]
    width, height = LEFT + 24 * (CELL + GAP), TOP + 7 * (CELL + GAP)
    field = el("svg", el("title", words), names, cells, viewBox=f"0 0 {width} {height}", role="img")
    return el("figure", field, class_="chart week")
