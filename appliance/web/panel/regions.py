"""Text regions: where machines write text into their pictures, and the way to draw more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import text_regions
from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.clinical import Instance, QuarantineItem, Series, Study
from appliance.db.engine import reading
from appliance.text_regions import TextRegionError
from appliance.web.panel import study_rows
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    button,
    card,
    filters,
    link,
    nothing,
    notice,
    page_head,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

SHOWN: Final = 200
WAITING: Final = 20
WITHOUT_REGIONS: Final = "ultrasound_without_regions"
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class RegionRow:
    """A row of the table; ``id`` is empty for one that comes with the product."""

    id: str
    modality: str
    manufacturer: str
    model: str
    rows: int
    columns: int
    boxes: tuple[tuple[int, int, int, int], ...]
    note: str
    created_by: str
    created_at: datetime | None


@dataclass(frozen=True)
class PictureRow:
    """Instances of a series whose pictures have one size; ``instance_id`` is one of them."""

    instance_id: str
    modality: str
    machine: str
    rows: int | None
    columns: int | None
    instances: int


@dataclass(frozen=True)
class WaitingRow:
    """An instance that waits because nobody said where its machine writes."""

    item_id: str
    instance_id: str
    study_id: str
    since: datetime


@dataclass(frozen=True)
class RegionsView:
    """All regions, and the pictures on which one could be drawn."""

    rows: tuple[RegionRow, ...]
    search: str
    study_id: str  # empty: none was asked for, or found
    pictures: tuple[PictureRow, ...]
    waiting: tuple[WaitingRow, ...]
    may_draw: bool
    may_remove: bool
    used: bool  # whether the node's profile looks at pixels at all


def may_draw(viewer: Viewer) -> bool:
    """Whether a person may draw: see pictures with what is written in them, and decide."""
    return viewer.may(Right.VIEW_IDENTITY) and viewer.may(Right.REVIEW_QUARANTINE)


def load(desk: Desk, viewer: Viewer, query: Query) -> RegionsView:
    """Read all regions, and the pictures of the study that is asked for."""
    search = query.text("study", length=40)
    with reading(desk.zone.engine) as session:
        study_id = _study(session, search)
        return RegionsView(
            rows=(*_own(session), *_bundled()),
            search=search,
            study_id=study_id,
            pictures=_pictures(session, study_id) if study_id else (),
            waiting=_waiting(session),
            may_draw=may_draw(viewer),
            may_remove=viewer.may(Right.REVIEW_QUARANTINE),
            used=text_regions.are_used(desk.zone),
        )


def _own(session: Session) -> list[RegionRow]:
    people = users.names(session)
    return [
        RegionRow(
            id=row.id,
            modality=row.modality,
            manufacturer=row.manufacturer,
            model=row.model,
            rows=row.rows,
            columns=row.columns,
            boxes=tuple((left, top, right, bottom) for left, top, right, bottom in row.boxes),
            note=row.note,
            created_by=people.get(row.created_by, row.created_by),
            created_at=row.created_at,
        )
        for row in text_regions.listed(session)
    ]


def _bundled() -> list[RegionRow]:
    return [
        RegionRow(
            id="",
            modality=row.modality,
            manufacturer=row.manufacturer,
            model=row.model,
            rows=row.rows,
            columns=row.columns,
            boxes=tuple((box.left, box.top, box.right, box.bottom) for box in row.boxes),
            note=row.source,
            created_by="",
            created_at=None,
        )
        for row in text_regions.bundled()
    ]


def _study(session: Session, search: str) -> str:
    """Return the study's row id for its first letters, as every page shows them; empty unless it is one."""
    start = search.lower().removeprefix("study").strip()
    if len(start) < 4 or not set(start) <= _HEX:
        return ""
    found = session.scalars(select(Study.id).where(Study.id.startswith(start)).limit(2)).all()
    return found[0] if len(found) == 1 else ""


def _pictures(session: Session, study_id: str) -> tuple[PictureRow, ...]:
    statement = (
        select(Series, Instance.rows, Instance.columns, func.min(Instance.id), func.count(Instance.id))
        .join(Instance)
        .where(Series.study_id == study_id)
        .group_by(Series.id, Instance.rows, Instance.columns)
        .order_by(Series.modality, Series.id, Instance.rows, Instance.columns)
        .limit(SHOWN)
    )
    return tuple(
        PictureRow(
            instance_id=str(instance_id),
            modality=series.modality,
            machine=f"{series.manufacturer} {series.manufacturer_model_name}".strip(),
            rows=rows,
            columns=columns,
            instances=int(number),
        )
        for series, rows, columns, instance_id, number in session.execute(statement)
    )


def _waiting(session: Session) -> tuple[WaitingRow, ...]:
    items = session.scalars(
        select(QuarantineItem)
        .where(
            QuarantineItem.reason_code == WITHOUT_REGIONS,
            QuarantineItem.resolved_at.is_(None),
            QuarantineItem.instance_id.in_(select(Instance.id)),
        )
        .order_by(QuarantineItem.created_at.desc(), QuarantineItem.id)
        .limit(WAITING)
    )
    return tuple(
        WaitingRow(item.id, item.instance_id or "", item.study_id or "", item.created_at) for item in items
    )


def draw(view: RegionsView, viewer: Viewer) -> Drawing:
    """Draw the table, and the way to the drawing."""
    del viewer
    lead = (
        "Where machines write names and numbers into their pictures. What lies in these boxes is blacked out"
        " in each release from the next on, for the same machine and size of picture alone."
    )
    drawing = {"head": page_head("Text regions", lead=lead)}
    if not view.used:
        drawing["unused"] = notice("warn", "The node's profile cleans no pixels: regions are not used.")
    if view.may_draw:
        drawing["choose"] = _choose(view)
    if view.waiting:
        drawing["waiting"] = card("Waiting for a region", _waiting_table(view))
    return {**drawing, "list": card("In force", _table(view))}


def _choose(view: RegionsView) -> Markup:
    form = filters(
        "/regions",
        text_field(
            "study",
            "Draw on a picture of study",
            value=view.search,
            prefix="",
            maxlength=40,
            placeholder="first letters of its number",
        ),
        submit="Find",
    )
    return card("Draw", form, _pictures_table(view) if view.search else None)


def _pictures_table(view: RegionsView) -> Markup:
    columns = (
        Column("Machine", "wide"),
        Column("Modality", "tight"),
        Column("Size", "tight"),
        Column("Instances", "number"),
        Column("", "tight"),
    )
    rows = [
        (
            row.machine or DASH,
            row.modality or DASH,
            size_of(row.columns, row.rows) if row.rows and row.columns else DASH,
            row.instances,
            el("div", link(f"/regions/{row.instance_id}", "Draw", class_="button"), class_="buttons"),
        )
        for row in view.pictures
    ]
    name = study_rows.study_name(view.study_id) if view.study_id else "No such study"
    empty = nothing(f"{name}: nothing to draw on.", "A study's number stands in its list and on its page.")
    return table(f"Pictures of {name}", columns, rows, empty=empty)


def _waiting_table(view: RegionsView) -> Markup:
    columns = (Column("Study", "wide"), Column("Since", "tight"), Column("", "tight"))
    rows = [
        (
            link(f"/studies/{row.study_id}", study_rows.study_name(row.study_id)) if row.study_id else DASH,
            when(row.since),
            el(
                "div",
                link(f"/quarantine/{row.item_id}", "Review", class_="button"),
                link(f"/regions/{row.instance_id}", "Draw", class_="button") if view.may_draw else None,
                class_="buttons",
            ),
        )
        for row in view.waiting
    ]
    return table("Ultrasound of machines without a region", columns, rows)


def _table(view: RegionsView) -> Markup:
    columns = (
        Column("Machine", "wide"),
        Column("Modality", "tight"),
        Column("Size", "tight"),
        Column("Boxes", "tight"),
        Column("Known from", "wide"),
        Column("By", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            stack(row.manufacturer or DASH, el("small", row.model)),
            row.modality or DASH,
            size_of(row.columns, row.rows),
            _sketch(row),
            row.note or DASH,
            stack(row.created_by, el("small", when(row.created_at))) if row.id else "comes with Cloister",
            _remove(row) if row.id and view.may_remove else None,
        )
        for row in view.rows
    ]
    return table("Text regions", columns, rows, empty=nothing("There is no region."))


def size_of(columns: int, rows: int) -> str:
    """Write the size of a picture: width by height in pixels, as people read it."""
    return f"{columns} \N{MULTIPLICATION SIGN} {rows}"


def _sketch(row: RegionRow) -> Markup:
    """Draw where the boxes lie in the picture."""
    shapes = [
        el("rect", x=left, y=top, width=right - left, height=bottom - top)
        for left, top, right, bottom in row.boxes
    ]
    words = count(len(row.boxes), "box", "boxes")
    frame = el("rect", x=0, y=0, width=row.columns, height=row.rows, class_="frame")
    picture = el(
        "svg",
        frame,
        shapes,
        viewBox=f"0 0 {row.columns} {row.rows}",
        class_="sketch",
        role="img",
        aria_label=words,
    )
    return stack(picture, el("small", words))


def _remove(row: RegionRow) -> Markup:
    machine = f"{row.manufacturer} {row.model}, {size_of(row.columns, row.rows)}"
    ask = Ask(
        f"Remove this region of {machine}? From the next release on its boxes are not blacked out any more."
        " It is recorded in the ledger."
    )
    shown = button("remove", "Remove", described=machine, style="danger", ask=ask, id=row.id)
    return el("div", shown, class_="buttons")


def remove(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Forget a region that staff drew."""
    try:
        text_regions.remove(desk.zone, fields.get("id", ""), actor=viewer.user_id)
    except TextRegionError as error:
        raise ActionRefusedError(f"Not removed: {error}.") from error
    return "Region removed."


PAGE: Final = Page(
    path="/regions",
    title="Text regions",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"remove": Action(Right.REVIEW_QUARANTINE, remove)},
    refresh_s=10.0,
)
