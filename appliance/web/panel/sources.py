"""Sources: who sends and what, by peer and scanner; who fell silent; what went where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance import alarms, habits, sources
from appliance.auth.rights import Right
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.habits import Week
from appliance.silence import Source
from appliance.web.panel.markup import DASH, EMPTY, count, date_time, el, size, when, zone_name
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    facts,
    grid,
    link,
    nothing,
    notice,
    page_head,
    stack,
    table,
    url,
)
from appliance.web.panel.weeks import bars, week

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from appliance.sources import AlarmRow, Detail, Overview, SourceRow
    from appliance.web.desk import Desk, Viewer

_TONES: Final = {
    sources.SILENT: "bad",
    habits.WATCHED: "ok",
    habits.LEARNING: "info",
    habits.SPARSE: "idle",
    sources.UNWATCHED: "idle",
    sources.QUIET: "idle",
}
_STATES: Final = {
    habits.LEARNING: "Its habits are known after three weeks; until then no silence of it raises an alarm.",
    habits.SPARSE: "It sends in less than ten hours a week: no silence of it means anything.",
    sources.UNWATCHED: "Nobody watches it: its peer says so, or it belongs to no peer.",
    sources.QUIET: "Nothing came from it in the last eight weeks.",
}


@dataclass(frozen=True)
class SourcesView:
    """All sources, and more of the chosen one."""

    overview: Overview
    chosen: Detail | None
    can_acknowledge: bool
    watches: bool  # whether silences raise alarms at all


def load(desk: Desk, viewer: Viewer, query: Query) -> SourcesView:
    """Read sources, and the chosen one."""
    at, monitoring = now(), desk.settings.monitoring
    title = query.text("ae_title", length=16)
    with reading(desk.zone.engine) as session:
        chosen = None
        if title:
            source = Source(title, query.text("station_name", length=64))
            chosen = sources.detail(session, source, at, Week(frozenset(monitoring.holidays)))
        return SourcesView(
            overview=sources.overview(session, at),
            chosen=chosen,
            can_acknowledge=Right.MANAGE_PEERS in viewer.rights,
            watches=monitoring.silence,
        )


def draw(view: SourcesView, viewer: Viewer) -> Drawing:
    """Draw alarms, sources, the chosen one and destinations."""
    del viewer
    found = view.overview
    lead = "What peers and the scanners behind them sent. "
    lead += (
        "A source that normally sends and falls silent raises an alarm."
        if view.watches
        else "Silences raise no alarm on this node (monitoring.silence)."
    )
    zone = el("span", f"Times are in {zone_name(now())}", class_="muted")
    drawing = {"head": page_head("Sources", zone, lead=lead)}
    if found.alarms:
        drawing["alarms"] = card("Silent", _alarms(view))
    if view.chosen is not None:
        drawing["chosen"] = _chosen(view.chosen)
    drawing["sources"] = card("Sources", _sources(view), aside=_strangers(found))
    if found.destinations:
        drawing["destinations"] = card("Sent to", _destinations(found))
    return drawing


def _alarms(view: SourcesView) -> Markup:
    columns = (
        Column("Source", "wide"),
        Column("Last instance", "tight"),
        Column("Alarm since", "tight"),
        Column("Seen by", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            _name(alarm.ae_title, alarm.station_name),
            when(alarm.last_at),
            when(alarm.raised_at),
            alarm.acknowledged_by or el("span", "nobody yet", class_="muted"),
            _acknowledge(alarm) if view.can_acknowledge and not alarm.acknowledged_by else None,
        )
        for alarm in view.overview.alarms
    ]
    return table("Silent sources", columns, rows)


def _acknowledge(alarm: AlarmRow) -> Markup:
    who = alarm.station_name or alarm.ae_title
    ask = Ask(f"Acknowledge that {who} is silent? The alarm ends by itself when it sends again.")
    return el(
        "div", button("acknowledge", "Acknowledge", ask=ask, described=who, id=alarm.id), class_="buttons"
    )


def _name(ae_title: str, station_name: str) -> Markup:
    where = url("/sources", ae_title=ae_title, station_name=station_name)
    if not station_name:
        return link(where, el("code", ae_title))
    return stack(link(where, station_name), el("small", "behind ", el("code", ae_title)))


def _sources(view: SourcesView) -> Markup:
    columns = (
        Column("Source", "wide"),
        Column("State", "tight"),
        Column("Last instance", "tight"),
        Column("Last 7 days", "tight"),
        Column("Last hour", "number"),
        Column("Today", "number"),
        Column("7 days", "number"),
        Column("Refused", "number"),
        Column("Rejected", "number"),
    )
    rows = [
        (
            _who(row),
            badge(row.state, tone=_TONES[row.state]),
            when(row.last_at),
            bars(f"Instances by hour, last 7 days: {row.week.instances}", row.hours or [0] * 168),
            _number(row.last_full_hour),
            _number(row.today.instances),
            stack(_number(row.week.instances), el("small", size(row.week.size_bytes))),
            _whole(row, row.week.failures, "warn"),
            _whole(row, row.week.rejected, "warn"),
        )
        for row in view.overview.sources
    ]
    empty = nothing(
        "No source is known yet.", "Add the PACS or scanner that sends under ", link("/peers", "Peers"), "."
    )
    return table("Sources", columns, rows, empty=empty)


def _who(row: SourceRow) -> Markup:
    where = url("/sources", ae_title=row.ae_title, station_name=row.station_name)
    if row.station_name:
        return el("div", link(where, row.station_name), class_="behind")
    title = el("code", row.ae_title)
    return stack(
        link(where, row.peer or title), el("small", title) if row.peer and row.peer != row.ae_title else None
    )


def _whole(row: SourceRow, number: int, tone: str) -> Markup:
    """Draw what is counted of the whole peer alone."""
    return el("span", DASH, class_="none") if row.station_name else _number(number, tone)


def _number(number: int, tone: str = "") -> Markup:
    if not number:
        return el("span", "0", class_="none")
    written = f"{number:,}".replace(",", "\u202f")
    return badge(tone, tone=tone, text=written) if tone else el("span", written)


def _strangers(found: Overview) -> Markup | None:
    if not found.strangers.rejected:
        return None
    words = count(found.strangers.rejected, "call") + " of unknown callers rejected in 7 days"
    return link("/peers", words)


def _chosen(chosen: Detail) -> Markup:
    row = chosen.row
    rows: list[tuple[str, object]] = [
        ("State", badge(row.state, tone=_TONES[row.state])),
        ("Last instance", when(row.last_at)),
        ("Known for", f"{chosen.weeks:.1f} weeks"),
        ("Sends in", f"{chosen.hours_a_week:.0f} hours a week"),
        ("Today", f"{count(row.today.instances, 'instance')}, {size(row.today.size_bytes)}"),
        ("7 days", f"{count(row.week.instances, 'instance')}, {size(row.week.size_bytes)}"),
    ]
    if not row.station_name:
        rows.append(("Associations in 7 days", count(row.week.associations, "association")))
    if row.peer_id:
        rows.append(("Peer", link(f"/peers/{row.peer_id}", row.peer)))
    name = row.station_name or row.peer or row.ae_title
    field = week(f"Instances of {name} by hour of the week, on average over eight weeks", chosen.profile)
    note = el("p", _note(chosen), class_="muted")
    close = link("/sources", "Close", class_="button")
    return card(name, grid(facts(rows), el("div", field, note)), aside=close, class_="source")


def _note(chosen: Detail) -> str:
    row = chosen.row
    if row.state in _STATES:
        return _STATES[row.state]
    if chosen.silent_from is None:
        return "Its silences are too usual to raise an alarm."
    if row.state == sources.SILENT:
        return f"Silent beyond its habit since {date_time(chosen.silent_from)}."
    return f"If nothing more comes, an alarm is raised on {date_time(chosen.silent_from)}."


def _destinations(found: Overview) -> Markup:
    columns = (
        Column("Destination", "wide"),
        Column("Last instance", "tight"),
        Column("Last 7 days", "tight"),
        Column("Today", "number"),
        Column("7 days", "number"),
        Column("Failed", "number"),
    )
    rows = [
        (
            stack(
                row.peer or el("code", row.ae_title),
                el("small", el("code", row.ae_title)) if row.peer else None,
            ),
            when(row.last_at),
            bars(f"Instances by hour, last 7 days: {row.week.instances}", row.hours or [0] * 168),
            _number(row.today.instances),
            stack(_number(row.week.instances), el("small", size(row.week.size_bytes))),
            _number(row.week.failures, "warn"),
        )
        for row in found.destinations
    ]
    return table("Sent to", columns, rows)


def draw_alarms(open_alarms: Sequence[AlarmRow]) -> Markup:
    """Draw, for the first page, who fell silent: the node is well, and yet somebody should look."""
    if not open_alarms:
        return EMPTY
    said = [
        el("div", el("strong", alarm.station_name or alarm.ae_title), ", last seen ", when(alarm.last_at))
        for alarm in open_alarms[:3]
    ]
    more = len(open_alarms) - len(said)
    rest = el("div", f"and {more} more") if more else None
    title = "A source fell silent" if len(open_alarms) == 1 else f"{len(open_alarms)} sources fell silent"
    return notice("warn", el("h2", title), said, rest, link("/sources", "See the sources, acknowledge"))


def acknowledge(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Note that a person has seen an alarm."""
    try:
        with writing(desk.zone.engine) as session:
            alarms.acknowledge(session, desk.zone.ledger, fields.get("id", ""), actor=viewer.user_id)
    except alarms.AlarmError as error:
        raise ActionRefusedError(f"Not acknowledged: {error}.") from error
    return "Acknowledged."


PAGE: Final = Page(
    path="/sources",
    title="Sources",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"acknowledge": Action(Right.MANAGE_PEERS, acknowledge)},
    refresh_s=30.0,
)
