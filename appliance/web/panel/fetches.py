"""Fetches: ordering studies from an archive, and how far that is."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.auth.rights import Right
from appliance.db.engine import reading
from appliance.db.peers import Peer
from appliance.web.panel import fetch_parts
from appliance.web.panel.markup import el, when
from appliance.web.panel.page import Action, Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    card,
    check_field,
    dialog,
    link,
    nothing,
    notice,
    opener,
    page_head,
    select_field,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.fetch_views import FetchRow
    from appliance.web.desk import Desk, Viewer

# Keyword -> label and hint.
KEYS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "PatientID": ("Patient id", ""),
        "PatientName": ("Patient name", "Family^Given; * stands for anything"),
        "AccessionNumber": ("Accession number", ""),
        "StudyDate": ("Study date", "20240101, or a range: 20240101-20240131"),
        "ModalitiesInStudy": ("Modality", "CT"),
        "StudyDescription": ("Description", "*THORAX*"),
        "StudyInstanceUID": ("Study Instance UID", ""),
    }
)


@dataclass(frozen=True)
class FetchesView:
    """The latest fetches, and the archives there are."""

    rows: tuple[FetchRow, ...]
    archives: tuple[str, ...]
    running: bool  # whether the worker that pulls is switched on
    can_fetch: bool
    study_id: str  # whose priors are to be ordered, where the address says so


def load(desk: Desk, viewer: Viewer, query: Query) -> FetchesView:
    """Read the fetches; values of patients only for those who may see them."""
    from appliance import fetch_views  # noqa: PLC0415 - loaded with the first visit

    with reading(desk.zone.engine) as session:
        rows = fetch_views.list_fetches(session, identity=viewer.may(Right.VIEW_IDENTITY))
        wanted = select(Peer.name).where(Peer.enabled, Peer.is_archive).order_by(Peer.name)
        archives = tuple(session.scalars(wanted))
    return FetchesView(
        rows=tuple(rows),
        archives=archives,
        running=desk.settings.fetch.enabled,
        can_fetch=viewer.may(Right.FETCH_STUDIES),
        study_id=query.text("study", length=32),
    )


def draw(view: FetchesView, viewer: Viewer) -> Drawing:
    """Draw the table and the dialogs."""
    del viewer
    may = view.can_fetch and bool(view.archives)
    lead = "Studies that other systems have, pulled into this node. Rules see that they were fetched."
    buttons = (
        (opener("priors", "Fetch priors"), opener("order", "Fetch by query", style="primary")) if may else ()
    )
    drawing = {"head": page_head("Fetch", *buttons, lead=lead)}
    if not view.running:
        drawing["off"] = notice("warn", "The worker that pulls is switched off (fetch.enabled).")
    if may and view.study_id:
        words = f"Priors of the study {view.study_id[:8]}: "
        drawing["study"] = notice("info", words, link(f"/studies/{view.study_id}", "back to it"), ".")
    drawing["table"] = card("Fetches", _table(view))
    if may:
        drawing["order"] = el("div", _order_dialog(view))
        drawing["priors"] = el("div", _priors_dialog(view))
    return drawing


def _table(view: FetchesView) -> Markup:
    columns = (
        Column("Archive", "tight"),
        Column("What", "wide"),
        Column("State", "tight"),
        Column("Progress"),
        Column("Ordered", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            link(f"/fetch/{row.id}", row.peer),
            fetch_parts.what(row),
            fetch_parts.state(row),
            stack(fetch_parts.progress(row), el("small", row.reason) if row.reason else None),
            stack(when(row.created_at), el("small", row.requested_by)),
            fetch_parts.buttons(row, first=True) if view.can_fetch else None,
        )
        for row in view.rows
    ]
    advice = (
        "Order one by query, or the priors of a stored study."
        if view.archives
        else ("Mark a peer as an archive first: ", link("/peers", "Peers"), ".")
    )
    return table("Fetches", columns, rows, empty=nothing("Nothing was fetched yet.", advice))


def _peer_field(view: FetchesView) -> Markup:
    return select_field("peer", "Archive", [(name, name) for name in view.archives])


def _manner_fields() -> tuple[Markup, ...]:
    return (
        select_field(
            "method",
            "Method",
            [
                ("", "the best it can do"),
                ("move", "C-MOVE, over our receiver"),
                ("get", "C-GET"),
                ("web", "DICOMweb"),
            ],
        ),
        text_field("hours", "Hours", required=False, hint="20:00-06:00, sat,sun; empty: always"),
        text_field("pause_s", "Pause between studies, in seconds", kind="number", required=False, min=0),
        text_field("per_hour", "Studies in an hour at most", kind="number", required=False, min=0),
        check_field("at_once", "Start without a look at what was found"),
    )


def _order_dialog(view: FetchesView) -> Markup:
    keys = (
        text_field(keyword, label, hint=hint, required=False, maxlength=200)
        for keyword, (label, hint) in KEYS.items()
    )
    return dialog(
        "order",
        "Fetch by query",
        "order",
        _peer_field(view),
        *keys,
        *_manner_fields(),
        submit="Ask the archive",
        lead="The archive is asked first. You see what matches before anything is pulled.",
    )


def _priors_dialog(view: FetchesView) -> Markup:
    return dialog(
        "priors",
        "Fetch priors",
        "priors",
        _peer_field(view),
        text_field(
            "study_id",
            "Study",
            value=view.study_id,
            hint="Row id of a stored study: the end of its page's address",
        ),
        text_field("modalities", "Modalities", required=False, hint="CT, MR; empty: all"),
        text_field("years", "Not older than years", kind="number", required=False, min=0),
        text_field("most", "The latest so many", kind="number", value="5", min=1),
        *_manner_fields(),
        submit="Ask the archive",
        lead="Earlier studies of the same patient, by patient id; another birth date is another patient.",
    )


def order(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Order a cohort."""
    from appliance import fetching  # noqa: PLC0415 - as above

    match = {keyword: fields.get(keyword, "") for keyword in KEYS}
    wanted = fetching.Order(fields.get("peer", ""), match, fetch_parts.manner_of(fields))
    fetch_parts.guarded(lambda: fetching.order(desk.zone, wanted, actor=viewer.user_id))
    return "Ordered: the archive is being asked."


def order_priors(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Order priors."""
    from appliance import fetching  # noqa: PLC0415 - as above

    codes = fields.get("modalities", "").replace(",", " ").split()
    wanted = fetching.Priors(
        fields.get("study_id", "").strip().rpartition("/")[2],
        tuple(codes),
        fetch_parts.number(fields, "years"),
        fetch_parts.number(fields, "most", 5),
    )
    manner, peer = fetch_parts.manner_of(fields), fields.get("peer", "")
    fetch_parts.guarded(lambda: fetching.order_priors(desk.zone, wanted, peer, manner, actor=viewer.user_id))
    return "Ordered: the archive is being asked."


def steer(name: str) -> Action:
    """Return the action that starts, pauses, resumes or cancels a fetch."""

    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        from appliance import fetching  # noqa: PLC0415 - as above

        fetch_id = fields.get("id", "") or fields.get("fetch_id", "")
        fetch_parts.guarded(lambda: fetching.act(desk.zone, fetch_id, name, actor=viewer.user_id))
        return fetch_parts.DONE_WORDS[name]

    return Action(Right.FETCH_STUDIES, run)


STEERING: Final[Mapping[str, Action]] = MappingProxyType(
    {name: steer(name) for name in fetch_parts.DONE_WORDS}
)
PAGE: Final = Page(
    path="/fetch",
    title="Fetch",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "order": Action(Right.FETCH_STUDIES, order),
        "priors": Action(Right.FETCH_STUDIES, order_priors),
        **STEERING,
    },
)
