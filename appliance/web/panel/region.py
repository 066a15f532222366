"""Drawing text regions: an instance's picture, and rectangles on it for the machine that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import text_regions
from appliance.auth.rights import Right
from appliance.db.clinical import Instance, Series
from appliance.db.engine import reading
from appliance.errors import ApplianceError
from appliance.text_regions import MAX_BOXES, NOTE_LENGTH, Machine, TextRegionError
from appliance.web.panel import regions, study_rows
from appliance.web.panel.markup import DASH, count, el
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import card, check_field, facts, link, notice, page_head, text_field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from anonymizer.regions import Region
    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class Known:
    """A box that is in force for the machine already, and where it is known from."""

    left: int
    top: int
    right: int
    bottom: int
    source: str


@dataclass(frozen=True)
class RegionView:
    """A picture to draw on; ``problem`` says why there is none."""

    instance_id: str
    study_id: str
    machine: Machine | None
    problem: str
    known: tuple[Known, ...]
    before: str  # ids of the instances beside it in its series; empty at an end
    after: str
    number: int
    of: int
    may_draw: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> RegionView:
    """Read what made the instance, what is known of that machine, and its neighbours."""
    with reading(desk.zone.engine) as session:
        instance = session.get(Instance, query.text("instance_id"))
        if instance is None:
            raise NotThereError("instance: no such row")
        study_id = session.scalars(select(Series.study_id).where(Series.id == instance.series_id)).one()
        beside = _beside(session, instance)
        machine, problem = None, ""
        known: tuple[Known, ...] = ()
        try:
            machine = text_regions.machine_of(desk.zone.root / instance.path)
            known = _known(text_regions.fitting(session, machine))
        except TextRegionError as error:
            problem = str(error)
    at = beside.index(instance.id)
    return RegionView(
        instance_id=instance.id,
        study_id=study_id,
        machine=machine,
        problem=problem,
        known=known,
        before=beside[at - 1] if at else "",
        after=beside[at + 1] if at + 1 < len(beside) else "",
        number=at + 1,
        of=len(beside),
        may_draw=regions.may_draw(viewer),
    )


def _beside(session: Session, instance: Instance) -> list[str]:
    """Return the instances of a series by their number."""
    rows = session.execute(
        select(Instance.id, Instance.instance_number).where(Instance.series_id == instance.series_id)
    ).all()

    def place(row: tuple[str, str]) -> tuple[int, str]:
        number = row[1].strip()
        return (int(number) if number.isascii() and number.isdecimal() else 0, row[0])

    return [row_id for row_id, _ in sorted(((str(a), str(b)) for a, b in rows), key=place)]


def _known(rows: tuple[Region, ...]) -> tuple[Known, ...]:
    return tuple(
        Known(box.left, box.top, box.right, box.bottom, row.source) for row in rows for box in row.boxes
    )


def draw(view: RegionView, viewer: Viewer) -> Drawing:
    """Draw the picture and the form."""
    del viewer
    lead = (
        "Draw a box around each place where this machine writes. It counts for all its pictures of this size."
    )
    beside = (
        _way("← Previous", view.before),
        el("span", f"Instance {view.number} of {view.of}", class_="muted"),
        _way("Next →", view.after),
    )
    back = (f"/regions?study={view.study_id}", "Text regions")
    head = page_head("Draw text regions", *(beside if view.of > 1 else ()), lead=lead, back=back)
    if view.machine is None:
        return {"head": head, "body": notice("warn", f"Nothing to draw on: {view.problem}.")}
    return {"head": head, "body": _editor(view, view.machine)}


def _way(words: str, instance_id: str) -> Markup | None:
    return link(f"/regions/{instance_id}", words, class_="button") if instance_id else None


def _editor(view: RegionView, machine: Machine) -> Markup:
    return el(
        "div",
        el("div", _picture(view, machine), class_="column"),
        el("div", _form(view, machine), _facts(view, machine), class_="column"),
        class_="grid wide-left",
        id="region-editor",
        data_rows=machine.rows,
        data_columns=machine.columns,
        data_most=MAX_BOXES,
        data_picture=f"/instances/{view.instance_id}/picture.png",
    )


def _picture(view: RegionView, machine: Machine) -> Markup:
    known = [
        el("rect", el("title", box.source), x=box.left, y=box.top, width=box.right - box.left,
           height=box.bottom - box.top)
        for box in view.known
    ]  # fmt: skip
    overlay = el(
        "svg",
        el("g", known, class_="known"),
        el("g", class_="drawn"),
        viewBox=f"0 0 {machine.columns} {machine.rows}",
        preserveAspectRatio="none",
        id="region-overlay",
        aria_hidden="true",
    )
    picture = el(
        "img",
        src=f"/instances/{view.instance_id}/picture.png",
        alt="Picture of the instance, as it was received",
        width=machine.columns,
        height=machine.rows,
        draggable="false",
    )
    ratio = f"--ratio:{machine.columns / machine.rows:.6f}"
    board = el("div", picture, overlay, class_="board", style=ratio)
    failed = el("p", "This picture cannot be shown; the boxes can be typed all the same.", id="region-failed",
                hidden=True, class_="muted")  # fmt: skip
    return card(
        "Picture",
        _frames(machine),
        board,
        failed,
        check_field("solid", "Show boxes as they will be: black"),
        class_="drawing",
    )


def _frames(machine: Machine) -> Markup | None:
    if machine.frames == 1:
        return None
    slider = el("input", type="range", min=1, max=machine.frames, value=1, id="region-frame")
    words = el("span", "Frame ", el("span", "1", id="region-frame-number"), f" of {machine.frames}")
    return el("label", words, slider, class_="frames")


def _form(view: RegionView, machine: Machine) -> Markup:
    if not view.may_draw:
        return card(
            "Boxes", el("p", "Keeping a region needs the right to review quarantine.", class_="muted")
        )
    hidden = el("input", type="hidden", name="field-boxes", value="[]")
    which = el("input", type="hidden", name="field-instance_id", value=view.instance_id)
    words = "Drag over the picture, or add a box and type its edges in pixels. Right and bottom lie outside."
    form = el(
        "form",
        hidden,
        which,
        el("p", words, class_="muted"),
        el("div", id="region-boxes", class_="boxes"),
        el("div", el("button", "Add box", type="button", class_="button", id="region-add"), class_="buttons"),
        text_field(
            "note",
            "Known from",
            required=False,
            maxlength=NOTE_LENGTH,
            hint="Such as: label at the top left; nothing of a patient.",
        ),
        el(
            "div",
            el("button", "Save for this machine", type="submit", class_="button primary"),
            class_="buttons",
        ),
        data_action="add",
        class_="region-form",
    )
    del machine
    return card("Boxes", form)


def _facts(view: RegionView, machine: Machine) -> Markup:
    known = count(len(view.known), "box", "boxes")
    rows: list[tuple[str, object]] = [
        ("Modality", machine.modality or DASH),
        ("Manufacturer", machine.manufacturer or DASH),
        ("Model", machine.model or DASH),
        ("Size", f"{regions.size_of(machine.columns, machine.rows)} pixels"),
        ("In force already", f"{known}, dashed in the picture" if view.known else "nothing"),
        ("Study", link(f"/studies/{view.study_id}", study_rows.study_name(view.study_id))),
    ]
    ultrasound = machine.modality == "US"
    words = "Ultrasound of this machine and size is released once a region is kept, without what it covers."
    return card("Machine", facts(rows), el("p", words, class_="muted") if ultrasound else None)


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Keep the drawn boxes for the machine that made the instance."""
    if not regions.may_draw(viewer):
        raise ActionRefusedError("You do not have the right to do this.")
    path = _path(desk, fields.get("instance_id", ""))
    boxes = _boxes(fields.get("boxes", ""))
    try:
        machine = text_regions.machine_of(path)
        row = text_regions.add(desk.zone, machine, boxes, fields.get("note", ""), actor=viewer.user_id)
    except ApplianceError as error:
        raise ActionRefusedError(f"Not saved: {error}.") from error
    return f"{count(len(row.boxes), 'box', 'boxes')} kept; blacked out from the next release on."


def _path(desk: Desk, instance_id: str) -> Path:
    with reading(desk.zone.engine) as session:
        instance = session.get(Instance, instance_id)
    if instance is None:
        raise ActionRefusedError("This instance is gone.")
    return desk.zone.root / instance.path


def _boxes(text: str) -> list[list[int]]:
    try:
        boxes = json.loads(text)
    except (ValueError, RecursionError):
        boxes = None
    if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
        raise ActionRefusedError("Not saved: boxes: expected a list of left, top, right and bottom.")
    return boxes


PAGE: Final = Page(
    path="/regions/{instance_id}",
    title="Draw text regions",
    right=Right.VIEW_IDENTITY,
    load=load,
    draw=draw,
    actions={"add": Action(Right.REVIEW_QUARANTINE, add)},
    scripts=("regions.js",),
    menu="/regions",
    refresh_s=30.0,
)
