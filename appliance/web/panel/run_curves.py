"""A run's figures by round, as curves: those of labels, of masks, or of what was found anomalous."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.federation.views import BETWEEN_PEERS
from appliance.web.panel import charts
from appliance.web.panel.federation import figure, interval, points
from appliance.web.panel.markup import el
from appliance.web.panel.parts import card, grid

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.federation import views

_WHERE: Final = "on held-out cases of this site; band: 95 % confidence interval."
_NOTE: Final = {
    False: f"Of the global model that came in with the round, {_WHERE}",
    True: f"Of this site's own model, with what it took over from its peers before it trained, {_WHERE}",
}


def draw(site: str, run: views.RunView) -> Markup:
    """Draw them side by side."""
    name, title = figure(run)
    headline = _within(title, charts.Series(site, points(run, name)), run=run)
    if name == "auc":
        others = [card("Loss by round", _loss(site, run)), card("At the threshold", _at_the_threshold(run))]
    elif any("segments" in one.metrics for one in run.rounds):
        others = [card("Dice of each segment", _segments(run))]
    else:
        area = charts.Series(site, points(run, "average_precision"))
        others = [card("Area under precision and recall", _within("Area", area, run=run))]
    return el(
        "div",
        grid(card(f"{title} by round", headline), *others, class_="curves"),
        el("p", _NOTE[run.strategy in BETWEEN_PEERS], class_="muted"),
        class_="column",
    )


def _within(title: str, *series: charts.Series, run: views.RunView) -> Markup:
    return charts.lines(title, series, rounds=max(run.total_rounds, 1), within=(0, 1))


def _loss(site: str, run: views.RunView) -> Markup:
    values = ((one.number, one.metrics.get("log_loss")) for one in run.rounds)
    known = tuple(
        charts.Point(number, float(value)) for number, value in values if isinstance(value, int | float)
    )
    return charts.lines("Loss", [charts.Series(site, known)], rounds=max(run.total_rounds, 1))


def _at_the_threshold(run: views.RunView) -> Markup:
    series = [
        charts.Series(name.capitalize(), _bare(points(run, name))) for name in ("sensitivity", "specificity")
    ]
    return _within("Sensitivity and specificity", *series, run=run)


def _segments(run: views.RunView) -> Markup:
    """Draw one curve a segment; metrics know it by its code."""
    found: dict[str, list[charts.Point]] = {}
    for one in run.rounds:
        segments = one.metrics.get("segments") or {}
        for code in segments:
            known = interval(segments, code)
            if known is not None:
                found.setdefault(code, []).append(charts.Point(one.number, *known))
    series = [charts.Series(code, _bare(tuple(curve))) for code, curve in sorted(found.items())]
    return _within("Dice of each segment", *series, run=run)


def _bare(curve: tuple[charts.Point, ...]) -> tuple[charts.Point, ...]:
    """Leave the bands of overlapping curves out."""
    return tuple(charts.Point(point.x, point.y) for point in curve)
