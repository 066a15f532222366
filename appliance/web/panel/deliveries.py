"""Deliveries: results on their way, by destination, with what proves that they are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance import deliveries
from appliance.auth.rights import Right
from appliance.db.engine import reading
from appliance.deliveries import DeliveryError, DeliveryRow, DestinationRow
from appliance.web.panel import study_rows
from appliance.web.panel.markup import DASH, count, el, join, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    filters,
    link,
    nothing,
    page_head,
    pager,
    select_field,
    stack,
    table,
    url,
)
from appliance.web.panel.study_results import kind_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 50
PROOF_WORDS: Final = {"stored": "stored", "committed": "committed", "read_back": "read back"}
_STATES: Final = (
    ("", "All states"),
    ("queued", "queued"),
    ("dead", "stopped"),
    ("withheld", "withheld"),
    ("delivered", "delivered"),
)


@dataclass(frozen=True)
class DeliveriesView:
    """All destinations, and one page of deliveries."""

    destinations: tuple[DestinationRow, ...]
    rows: tuple[DeliveryRow, ...]
    total: int
    page: int
    pages: int
    destination: str
    state: str
    can_act: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> DeliveriesView:
    """Read destinations and deliveries: what needs a person first, then the newest."""
    destination = query.text("destination", length=64)
    state = query.text("state") if query.text("state") in deliveries.STATES else ""
    with reading(desk.zone.engine) as session:
        total = deliveries.total(session, destination, state)
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        return DeliveriesView(
            destinations=deliveries.destinations(session),
            rows=deliveries.listed(session, destination, state, PAGE_SIZE, (page - 1) * PAGE_SIZE),
            total=total,
            page=page,
            pages=pages,
            destination=destination,
            state=state,
            can_act=Right.RETRY_JOBS in viewer.rights,
        )


def draw(view: DeliveriesView, viewer: Viewer) -> Drawing:
    """Draw the destinations, the filter and the deliveries."""
    del viewer
    names = [("", "All destinations"), *((row.name, row.name) for row in view.destinations)]
    form = filters(
        "/deliveries",
        select_field("destination", "Destination", names, view.destination, prefix=""),
        select_field("state", "State", _STATES, view.state, prefix=""),
    )
    lead = (
        "A result is delivered when its destination committed it, gave it back on a query,"
        " or, where it can do neither, said that it stored it."
    )
    return {
        "head": page_head("Deliveries", lead=lead),
        "destinations": card("Destinations", _destinations(view)),
        "filter": form,
        "rows": card(
            "Deliveries",
            _deliveries(view),
            pager("/deliveries", view.page, view.pages, destination=view.destination, state=view.state),
            aside=count(view.total, "delivery", "deliveries"),
        ),
    }


def _destinations(view: DeliveriesView) -> Markup:
    columns = (
        Column("Destination", "wide"),
        Column("State", "tight"),
        Column("Queued", "number"),
        Column("Stopped", "number"),
        Column("Withheld", "number"),
        Column("Delivered", "number"),
        Column("Committed", "number"),
        Column("Read back", "number"),
        Column("Stored", "number"),
    )
    rows = [
        (
            link(url("/deliveries", destination=row.name), row.name),
            _standing(row),
            row.queued,
            row.dead,
            row.withheld,
            row.delivered,
            row.committed,
            row.read_back,
            row.stored,
        )
        for row in view.destinations
    ]
    empty = nothing("No destination.", "Mark a peer as a destination under ", link("/peers", "Peers"), ".")
    return table("Destinations", columns, rows, empty=empty)


def _standing(row: DestinationRow) -> Markup:
    if not row.enabled:
        return badge("disabled")
    if row.rests_until is not None:
        again = el("span", join(("Tried at ", when(row.rests_until, seconds=True))), class_="reason")
        return stack(badge("away", tone="bad"), again)
    if row.failures:
        return badge("failing", tone="warn")
    return badge("well", text="reached") if row.delivered else badge("enabled")


def _deliveries(view: DeliveriesView) -> Markup:
    columns = (
        Column("Result", "tight"),
        Column("Destination", "tight"),
        Column("State", "wide"),
        Column("Proof", "tight"),
        Column("Attempts", "number"),
        Column("", "tight"),
    )
    rows = [
        (
            stack(
                link(f"/results/{row.result_id}", kind_name(row.kind)),
                link(f"/studies/{row.study_id}", study_rows.study_name(row.study_id)),
            ),
            row.destination,
            _state(row),
            _proof(row),
            row.attempts or DASH,
            _buttons(row) if view.can_act else None,
        )
        for row in view.rows
    ]
    if view.destination or view.state:
        empty = nothing("No delivery matches the filter.", link("/deliveries", "Show all deliveries"))
    else:
        empty = nothing("Nothing was sent yet.", "Rules say where results go: ", link("/rules", "Rules"), ".")
    return table("Deliveries", columns, rows, empty=empty)


def _state(row: DeliveryRow) -> Markup:
    notes = [el("span", row.reason, class_="reason")] if row.reason else []
    if row.next_try_at is not None:
        again = join(("Next try ", when(row.next_try_at, seconds=True)))
        notes.append(el("span", again, class_="reason"))
    return stack(badge(row.state), *notes)


def _proof(row: DeliveryRow) -> Markup | str:
    if not row.proof:
        return DASH
    return stack(
        PROOF_WORDS.get(row.proof, row.proof), el("small", when(row.proved_at)) if row.proved_at else None
    )


def _buttons(row: DeliveryRow) -> Markup | None:
    if row.state not in {"queued", "dead"}:
        return None
    described = f"delivery {row.id[:8]}"
    shown = [button("retry", "Retry", described=described, id=row.id)]
    if not row.proof:
        ask = Ask(f"Keep this result from {row.destination} for good?")
        shown.append(button("withhold", "Withhold", described=described, ask=ask, style="danger", id=row.id))
    return el("div", *shown, class_="buttons")


def retry(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Try a delivery again now."""
    try:
        deliveries.retry(desk.zone, fields.get("id", ""), actor=viewer.user_id)
    except DeliveryError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return "Queued again."


def withhold(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Keep a result from a destination."""
    try:
        deliveries.withhold(desk.zone, fields.get("id", ""), actor=viewer.user_id)
    except DeliveryError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return "Withheld: it is not sent there."


PAGE: Final = Page(
    path="/deliveries",
    title="Deliveries",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "retry": Action(Right.RETRY_JOBS, retry),
        "withhold": Action(Right.RETRY_JOBS, withhold),
    },
    refresh_s=10.0,
)
