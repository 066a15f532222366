"""Quarantine: what was stopped, why, and a person's review."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, func, select

from appliance import merges, quarantine
from appliance.auth.rights import Right
from appliance.db.clinical import QuarantineItem
from appliance.db.engine import reading, writing
from appliance.web.panel import standing, study_rows
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    button,
    dialog,
    filters,
    link,
    nothing,
    opener,
    page_head,
    pager,
    select_field,
    stack,
    table,
    url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 50


@dataclass(frozen=True)
class ItemRow:
    """Something that was stopped."""

    id: str
    stage: str
    reason_code: str
    reason: str
    study_id: str | None
    calling_ae_title: str
    created_at: datetime
    resolved_at: datetime | None
    resolution: str
    may_review: bool
    may_file_again: bool


@dataclass(frozen=True)
class QuarantineView:
    """One page of items, and how many there are by reason."""

    rows: tuple[ItemRow, ...]
    reasons: tuple[tuple[str, int], ...]
    open_total: int
    page: int
    pages: int
    show: str
    reason_code: str
    can_review: bool
    decisions: tuple[standing.DecisionRow, ...]


def load(desk: Desk, viewer: Viewer, query: Query) -> QuarantineView:
    """Read one page of items, newest first."""
    show = "all" if query.text("show") == "all" else "open"
    reason_code = query.text("reason", length=48)
    unresolved = QuarantineItem.resolved_at.is_(None)
    conditions: list[ColumnElement[bool]] = [] if show == "all" else [unresolved]
    if reason_code:
        conditions.append(QuarantineItem.reason_code == reason_code)
    with reading(desk.zone.engine) as session:
        total = session.scalar(select(func.count()).select_from(QuarantineItem).where(*conditions)) or 0
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        items = session.scalars(
            select(QuarantineItem)
            .where(*conditions)
            .order_by(QuarantineItem.created_at.desc(), QuarantineItem.id)
            .limit(PAGE_SIZE)
            .offset((page - 1) * PAGE_SIZE)
        ).all()
        reasons = session.execute(
            select(QuarantineItem.reason_code, func.count())
            .where(unresolved)
            .group_by(QuarantineItem.reason_code)
            .order_by(func.count().desc())
        ).all()
        decided = standing.read(session)
    return QuarantineView(
        rows=tuple(_row(item) for item in items),
        reasons=tuple((str(code), int(number)) for code, number in reasons),
        open_total=sum(int(number) for _, number in reasons),
        page=page,
        pages=pages,
        show=show,
        reason_code=reason_code,
        can_review=Right.REVIEW_QUARANTINE in viewer.rights,
        decisions=decided,
    )


def _row(item: QuarantineItem) -> ItemRow:
    return ItemRow(
        id=item.id,
        stage=item.stage,
        reason_code=item.reason_code,
        reason=item.reason,
        study_id=item.study_id,
        calling_ae_title=item.calling_ae_title,
        created_at=item.created_at,
        resolved_at=item.resolved_at,
        resolution=item.resolution,
        may_review=item.reason_code not in merges.DISPUTES,
        may_file_again=item.stage == quarantine.INDEX_STAGE and item.path is not None,
    )


def draw(view: QuarantineView, viewer: Viewer) -> Drawing:
    """Draw filters and list."""
    del viewer
    form = filters(
        "/quarantine",
        select_field("show", "Show", [("open", "Open items"), ("all", "All items")], view.show, prefix=""),
        select_field(
            "reason",
            "Reason",
            [("", "All reasons"), *((code, f"{code} ({number})") for code, number in view.reasons)],
            view.reason_code,
            prefix="",
        ),
    )
    lead = "What the node could not judge stays inside, with the reason, until a person has looked at it."
    return {
        "head": page_head("Quarantine", el("span", f"{view.open_total} open", class_="muted"), lead=lead),
        "filter": form,
        "list": el(
            "div",
            _table(view),
            pager("/quarantine", view.page, view.pages, show=view.show, reason=view.reason_code),
            class_="alone",
        ),
        "decisions": el("div", standing.draw(view.decisions, can_review=view.can_review)),
        "dialogs": el("div", (_dialog(row) for row in view.rows if _is_undecided(view, row))),
    }


def _table(view: QuarantineView) -> Markup:
    columns = (
        Column("Reason", "wide"),
        Column("Stage", "tight"),
        Column("Study", "tight"),
        Column("From", "tight"),
        Column("Since", "tight"),
        Column("State", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            stack(link(f"/quarantine/{row.id}", row.reason), el("small", row.reason_code)),
            row.stage,
            link(f"/studies/{row.study_id}", study_rows.study_name(row.study_id)) if row.study_id else DASH,
            row.calling_ae_title or DASH,
            when(row.created_at),
            standing.state_of(row.resolved_at, row.resolution),
            _buttons(row) if _is_undecided(view, row) else None,
        )
        for row in view.rows
    ]
    if view.show == "open" and not view.reason_code:
        empty = nothing(
            "Nothing is in quarantine.", link(url("/quarantine", show="all"), "Show reviewed items")
        )
    else:
        empty = nothing("No item matches.", link("/quarantine", "Show open items"))
    return table("Quarantined items", columns, rows, empty=empty)


def _is_undecided(view: QuarantineView, row: ItemRow) -> bool:
    return view.can_review and row.resolved_at is None and not row.resolution


def _buttons(row: ItemRow) -> Markup:
    seen = Ask("Mark this item as reviewed? It stays inside and is recorded in the ledger as seen by you.")
    again = Ask(
        "File this instance again? It is stopped once more unless what stopped it has been corrected."
    )
    return el(
        "div",
        button("review", "Mark reviewed", ask=seen, id=row.id, described=row.reason_code)
        if row.may_review
        else None,
        button("again", "File again", ask=again, id=row.id, described=row.reason_code)
        if row.may_file_again
        else None,
        opener(f"discard-{row.id}", "Discard", style="danger"),
        class_="buttons",
    )


def _dialog(row: ItemRow) -> Markup:
    lead = (
        "The received instance is deleted. What is stored already stays as it is."
        if row.may_file_again
        else "The item is closed. What is stored stays as it is."
    )
    return dialog(
        f"discard-{row.id}",
        "Discard this item",
        "discard",
        select_field("why", "Because", list(quarantine.WHY.items())),
        lead=lead,
        submit="Discard",
        id=row.id,
    )


def review(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Mark an item as seen by a person."""
    _decide(desk, quarantine.review, fields, actor=viewer.user_id)
    return "Marked as reviewed."


def discard(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Give an item up, with a reason."""
    run = partial(quarantine.discard, why=fields.get("why", ""))
    _decide(desk, run, fields, actor=viewer.user_id)
    return "Discarded."


def again(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """File an item once more."""
    _decide(desk, quarantine.file_again, fields, actor=viewer.user_id)
    return "It is filed again in a moment."


def _decide(desk: Desk, run: Callable[..., None], fields: Mapping[str, str], *, actor: str) -> None:
    try:
        with writing(desk.zone.engine) as session:
            run(session, desk.zone.ledger, fields.get("id", ""), actor=actor)
    except quarantine.QuarantineError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error


PAGE: Final = Page(
    path="/quarantine",
    title="Quarantine",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "review": Action(Right.REVIEW_QUARANTINE, review),
        "discard": Action(Right.REVIEW_QUARANTINE, discard),
        "again": Action(Right.REVIEW_QUARANTINE, again),
        "withdraw": Action(Right.REVIEW_QUARANTINE, standing.withdraw),
    },
)
