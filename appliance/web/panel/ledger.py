"""Ledger: the signed record of the clinical zone, page by page, and its verification."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import node
from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.ledger import verify
from appliance.web.panel import research
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    button,
    code,
    filters,
    link,
    nothing,
    page_head,
    pager,
    select_field,
    table,
    url,
)
from appliance.web.panel.records_tabs import tabs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 50


@dataclass(frozen=True)
class EntryRow:
    """One entry of a ledger."""

    sequence: int
    at: datetime
    kind: str
    actor: str
    subject_id: str
    body: str
    entry_hash: str


@dataclass(frozen=True)
class LedgerView:
    """One page of a zone's ledger, newest first."""

    zone: str
    rows: tuple[EntryRow, ...]
    total: int
    page: int
    pages: int
    kind: str
    kinds: tuple[str, ...]
    reachable: bool = True


def load(desk: Desk, viewer: Viewer, query: Query) -> LedgerView:
    """Read one page."""
    del viewer
    if query.text("zone") == "research":
        return _load_research(desk, query)
    kind = query.text("kind", length=64)
    conditions = [ClinicalLedgerEntry.kind == kind] if kind else []
    with reading(desk.zone.engine) as session:
        total = session.scalar(select(func.count()).select_from(ClinicalLedgerEntry).where(*conditions)) or 0
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        entries = session.scalars(
            select(ClinicalLedgerEntry)
            .where(*conditions)
            .order_by(ClinicalLedgerEntry.sequence.desc())
            .limit(PAGE_SIZE)
            .offset((page - 1) * PAGE_SIZE)
        ).all()
        kinds = tuple(
            session.scalars(select(ClinicalLedgerEntry.kind).distinct().order_by(ClinicalLedgerEntry.kind))
        )
        people = users.names(session)
    rows = tuple(
        EntryRow(
            sequence=entry.sequence,
            at=datetime.fromisoformat(entry.at),
            kind=entry.kind,
            actor=people.get(entry.actor, entry.actor),
            subject_id=entry.subject_id or "",
            body=entry.body,
            entry_hash=entry.entry_hash,
        )
        for entry in entries
    )
    return LedgerView("clinical", rows, total, page, pages, kind, kinds)


def _load_research(desk: Desk, query: Query) -> LedgerView:
    """Ask the research zone; its pages are found by the sequence number above them."""
    before = query.number("before", 0, low=0, high=99_999_999)
    found = research.ask(lambda: desk.research.ledger(before=before or None, limit=PAGE_SIZE))
    if found is None:
        return LedgerView("research", (), 0, 1, 1, "", (), reachable=False)
    rows = tuple(
        EntryRow(
            sequence=entry.sequence,
            at=datetime.fromisoformat(entry.at),
            kind=entry.kind,
            actor=entry.actor,
            subject_id=entry.subject_id or "",
            body=json.dumps(entry.body, sort_keys=True, separators=(",", ":")),
            entry_hash=entry.entry_hash,
        )
        for entry in found
    )
    return LedgerView("research", rows, len(rows), 1, 1, "", ())


def draw(view: LedgerView, viewer: Viewer) -> Drawing:
    """Draw one page of entries."""
    del viewer
    verify_button = button(
        "verify", "Verify", style="primary", described=f"{view.zone} ledger", zone=view.zone
    )
    lead = (
        "Every step, hash-chained and signed. "
        "Entries hold row ids, counts and commitments, never a patient's value."
    )
    sections = {
        "head": page_head("Ledger", verify_button, lead=lead),
        "zones": tabs("/ledger" if view.zone == "clinical" else "/ledger?zone=research"),
    }
    if not view.reachable:
        return {**sections, "list": research.away()}
    if view.zone == "clinical":
        kinds = [("", "All kinds"), *((kind, kind) for kind in view.kinds)]
        sections["filter"] = filters("/ledger", select_field("kind", "Kind", kinds, view.kind, prefix=""))
    return {**sections, "list": el("div", _table(view), _further(view), class_="alone")}


def _table(view: LedgerView) -> Markup:
    columns = (
        Column("No.", "number"),
        Column("When", "tight"),
        Column("What", "tight"),
        Column("By", "tight"),
        Column("About", "tight"),
        Column("Content", "wide"),
        Column("Hash", "tight"),
    )
    rows = [
        (
            row.sequence,
            when(row.at, seconds=True),
            row.kind,
            row.actor if len(row.actor) < 32 else code(row.actor, length=8),
            code(row.subject_id, length=8),
            el("code", row.body) if row.body != "{}" else el("span", DASH, class_="none"),
            code(row.entry_hash),
        )
        for row in view.rows
    ]
    empty = nothing(
        "No entry here.",
        link("/ledger", "Show all entries") if view.kind else "The first step writes the first entry.",
    )
    return table("Ledger entries", columns, rows, empty=empty)


def _further(view: LedgerView) -> Markup | None:
    if view.zone == "clinical":
        return pager("/ledger", view.page, view.pages, kind=view.kind)
    if len(view.rows) < PAGE_SIZE:
        return None
    older = url("/ledger", zone="research", before=view.rows[-1].sequence)
    return el("nav", link(older, "Older →", class_="button"), class_="pager", aria_label="Pages")


def check(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Verify a zone's whole ledger."""
    del viewer
    if fields.get("zone") == "research":
        told = research.act(desk.research.verify_ledger)
        return _say(told.ok, told.entries, [(problem.sequence, problem.message) for problem in told.problems])
    key = desk.zone.keys.signing.public_key()
    report = verify(desk.zone.engine, key, node.head_path(desk.settings, "clinical"))
    return _say(
        report.ok, report.entries, [(problem.sequence, problem.message) for problem in report.problems]
    )


def _say(ok: bool, entries: int, problems: Sequence[tuple[int, str]]) -> str:
    if ok:
        return f"Verified: {count(entries, 'entry', 'entries')}, each in its place, unchanged and signed."
    first = (
        f"first at number {problems[0][0]}: {problems[0][1]}" if problems else "see: cloister ledger verify"
    )
    raise ActionRefusedError(f"This ledger is not intact: {count(len(problems), 'problem')}, {first}.")


PAGE: Final = Page(
    path="/ledger",
    title="Ledger",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"verify": Action(Right.VIEW, check)},
    refresh_s=4.0,
)
