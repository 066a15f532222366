"""Consortium: the history that all sites share, as this site keeps it, and what was found wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from appliance.auth.rights import Right
from appliance.web.panel import research
from appliance.web.panel.markup import DASH, count, el, join, when
from appliance.web.panel.page import Action, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    code,
    nothing,
    notice,
    page_head,
    table,
)
from appliance.web.panel.records_tabs import tabs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.federation import views
    from appliance.web.desk import Desk, Viewer

_KINDS: Final = {
    "members": "members",
    "run": "run begins",
    "round": "round",
    "final": "final model taken",
    "share": "studies shared",
}


@dataclass(frozen=True)
class ConsortiumPage:
    """The site's replica; None when the research zone does not answer."""

    found: views.ConsortiumView | None
    can_resolve: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> ConsortiumPage:
    """Ask the research zone."""
    del query
    return ConsortiumPage(research.ask(desk.research.consortium), Right.APPROVE_PROTOCOL in viewer.rights)


def draw(view: ConsortiumPage, viewer: Viewer) -> Drawing:
    """Draw findings first, then the blocks, newest first."""
    del viewer
    lead = (
        "What all sites of the federation signed: who contributed, which data version, which model came, and"
        " which de-identified studies one site gave to another. Every site keeps all of it."
    )
    sections: dict[str, Markup] = {
        "head": page_head("Consortium", lead=lead),
        "zones": tabs("/consortium"),
    }
    if view.found is None:
        return {**sections, "list": research.away()}
    sections["state"] = _state(view.found)
    if view.found.findings:
        sections["findings"] = _findings(view.found, can_resolve=view.can_resolve)
    return {**sections, "list": el("div", _blocks(view.found), class_="alone")}


def _state(found: views.ConsortiumView) -> Markup:
    open_ones = sum(one.resolved_at is None for one in found.findings)
    if open_ones:
        text = "No round runs here until a person has looked into it."
        return notice("bad", f"{count(open_ones, 'open finding')}. {text}")
    if found.countersigned_at is None:
        return notice("info", "No block has come to this site yet.")
    return el(
        "p",
        f"{count(found.size, 'block')}, countersigned here ",
        when(found.countersigned_at),
        ", root ",
        code(found.root),
    )


def _findings(found: views.ConsortiumView, *, can_resolve: bool) -> Markup:
    columns = (
        Column("Found", "tight"),
        Column("Block", "number"),
        Column("Rule", "tight"),
        Column("What is wrong", "wide"),
        Column("Standing", "tight"),
    )
    rows = [
        (when(one.found_at), one.sequence, one.code, one.message, _standing(one, can_resolve=can_resolve))
        for one in found.findings
    ]
    return table("Findings", columns, rows)


def _standing(one: views.ConsortiumFindingView, *, can_resolve: bool) -> Markup:
    if one.resolved_at is not None:
        return join([badge("resolved", tone="good"), " ", when(one.resolved_at)])
    if not can_resolve:
        return badge("open", tone="bad")
    ask = Ask("Resolve this finding? Rounds run here again; what is still wrong is found again.")
    return button("resolve", "Resolve", ask=ask, described=f"finding at block {one.sequence}", id=one.id)


def _blocks(found: views.ConsortiumView) -> Markup:
    columns = (
        Column("Block", "number"),
        Column("When", "tight"),
        Column("What", "tight"),
        Column("Contributions", "wide"),
        Column("Model", "tight"),
        Column("Countersigned by", "tight"),
        Column("Hash", "tight"),
    )
    rows = [
        (
            one.sequence,
            when(datetime.fromisoformat(one.at)),
            _what(one),
            _parts(one),
            code(one.model_sha256),
            ", ".join(one.countersigned_by) or el("span", DASH, class_="none"),
            code(one.block_hash),
        )
        for one in found.blocks
    ]
    return table("Blocks", columns, rows, empty=nothing("No block here.", "The first run brings the first."))


def _what(one: views.ConsortiumBlockView) -> str:
    kind = _KINDS.get(one.kind, one.kind)
    return kind if one.kind in {"members", "share"} else f"{one.run}: {kind} {one.round or ''}".strip()


def _parts(one: views.ConsortiumBlockView) -> Markup | str:
    if one.kind == "members":
        return ", ".join(one.members)
    if one.share:
        return one.share
    if not one.contributions:
        return el("span", DASH, class_="none")
    lines = []
    for part in one.contributions:
        standing = count(part.samples, "sample") if part.accepted else "refused"
        lines.append(el("div", f"{part.site}: {standing}, data ", code(part.dataset_sha256, length=8)))
    return join(lines)


def resolve(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Note that this person has looked into a finding."""
    research.act(lambda: desk.research.resolve_finding(fields.get("id", ""), viewer.user_id))
    return "Resolved. Rounds may run here again."


PAGE: Final = Page(
    path="/consortium",
    title="Consortium",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"resolve": Action(Right.APPROVE_PROTOCOL, resolve)},
    refresh_s=6.0,
)
