"""One fetch: what matched, and its studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.auth.rights import Right
from appliance.db.engine import reading
from appliance.web.panel import fetch_parts, fetches
from appliance.web.panel.markup import DASH, when
from appliance.web.panel.page import Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    card,
    facts,
    link,
    nothing,
    page_head,
    pager,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.fetch_views import FetchRow, StudyRow
    from appliance.web.desk import Desk, Viewer

PER_PAGE: Final = 100
_TITLES: Final = (
    ("PatientID", "Patient id"),
    ("PatientName", "Name"),
    ("StudyDate", "Date"),
    ("ModalitiesInStudy", "Modalities"),
    ("StudyDescription", "Description"),
    ("NumberOfStudyRelatedInstances", "Instances"),
)


@dataclass(frozen=True)
class FetchView:
    """A fetch, what the archive said of the first studies, and a page of its studies."""

    row: FetchRow
    preview: tuple[Mapping[str, str], ...]
    studies: tuple[StudyRow, ...]
    page: int
    pages: int
    can_fetch: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> FetchView:
    """Read one fetch."""
    from appliance import fetch_views  # noqa: PLC0415 - loaded with the first visit

    fetch_id, identity = query.text("fetch_id"), viewer.may(Right.VIEW_IDENTITY)
    with reading(desk.zone.engine) as session:
        row = fetch_views.get_fetch(session, fetch_id, identity=identity)
        if row is None:
            raise NotThereError("fetch: no such row")
        pages = max(-(-row.studies // PER_PAGE), 1)
        page = query.number("page", high=pages)
        studies = fetch_views.list_studies(session, fetch_id, offset=(page - 1) * PER_PAGE, limit=PER_PAGE)
        shown = fetch_views.preview(session, fetch_id, identity=identity)
    return FetchView(row, tuple(shown), tuple(studies), page, pages, viewer.may(Right.FETCH_STUDIES))


def draw(view: FetchView, viewer: Viewer) -> Drawing:
    """Draw it."""
    del viewer
    row = view.row
    drawing = {
        "head": page_head(
            f"Fetch from {row.peer}",
            fetch_parts.buttons(row) if view.can_fetch else None,
            marks=fetch_parts.state(row),
            lead=row.reason,
            back=("/fetch", "Fetch"),
        ),
        "facts": card("What", facts(_facts(row))),
    }
    if row.state == "listed":
        drawing["preview"] = card("What the archive has", _preview(view))
    drawing["studies"] = card("Studies", _studies(view), pager(f"/fetch/{row.id}", view.page, view.pages))
    return drawing


def _facts(row: FetchRow) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = [
        ("Asked for", fetch_parts.what(row)),
        ("Progress", fetch_parts.progress(row)),
        ("Here when it was listed", row.here),
        ("Ordered", when(row.created_at)),
        ("By", row.requested_by),
    ]
    if row.dropped:
        found.append(("Answers dropped", f"{row.dropped}: they contradict what was asked for"))
    if row.finished_at:
        found.append(("Ended", when(row.finished_at)))
    return found


def _preview(view: FetchView) -> Markup:
    shown = [(key, title) for key, title in _TITLES if any(key in one for one in view.preview)]
    columns = [Column(title, "tight" if key != "StudyDescription" else "wide") for key, title in shown]
    rows = [[_plain(key, one.get(key, "")) for key, _ in shown] for one in view.preview]
    return table(
        "The first studies that match", columns, rows, empty=nothing("No study matches what was asked for.")
    )


def _plain(key: str, value: str) -> str:
    if key == "ModalitiesInStudy":
        return value.replace("\\", ", ") or DASH
    if key == "StudyDate" and len(value) == 8:
        return f"{value[:4]}-{value[4:6]}-{value[6:]}"
    return value or DASH


def _studies(view: FetchView) -> Markup:
    columns = (
        Column("Study", "tight"),
        Column("State", "tight"),
        Column("Instances", "number"),
        Column("Tries", "number"),
        Column("", "wide"),
        Column("Last change", "tight"),
    )
    rows = [
        (
            link(f"/studies/{one.study_id}", one.study_id[:8]) if one.study_id else DASH,
            badge(one.state, tone="bad" if one.state == "failed" else None, text=_WORDS.get(one.state)),
            f"{one.received} of {one.expected if one.expected is not None else '?'}",
            one.attempts,
            one.reason,
            when(one.updated_at, seconds=True),
        )
        for one in view.studies
    ]
    return table("Studies of this fetch", columns, rows, empty=nothing("No study is listed."))


_WORDS: Final = {"done": "here", "queued": "to come", "failed": "not whole"}
PAGE: Final = Page(
    path="/fetch/{fetch_id}",
    title="Fetch",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions=fetches.STEERING,
    menu="/fetch",
)
