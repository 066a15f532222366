"""Shared studies: what this site gave to another one or received, and what is asked of it now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.auth.rights import Right
from appliance.web.panel import research
from appliance.web.panel.markup import count, el, join, when
from appliance.web.panel.page import Action, Drawing, Page, Query
from appliance.web.panel.parts import Ask, Column, badge, button, code, nothing, notice, page_head, table
from appliance.web.panel.records_tabs import tabs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup

    from appliance.federation.views import ShareView
    from appliance.web.desk import Desk, Viewer

STANDS: Final = frozenset({"given", "received"})
_TONES: Final = {"withdrawn": "warn", "erased": "idle", "prepared": "idle"}


@dataclass(frozen=True)
class SharesPage:
    """Every share of this site, newest first; None when the research zone does not answer."""

    found: list[ShareView] | None
    can_decide: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> SharesPage:
    """Ask the research zone."""
    del query
    return SharesPage(research.ask(desk.research.shares), Right.APPROVE_PROTOCOL in viewer.rights)


def draw(view: SharesPage, viewer: Viewer) -> Drawing:
    """Draw what is asked of this site, then every share."""
    del viewer
    lead = (
        "De-identified studies that people here gave to another site of the federation, or took from one."
        " Every step is signed and stands in the ledger that all sites keep."
    )
    ask = Ask("Tell the coordinator what it does not know yet, and learn what other sites said?")
    action = button("announce", "Ask the coordinator", ask=ask) if view.can_decide else ""
    sections: dict[str, Markup] = {
        "head": page_head("Shared studies", action, lead=lead),
        "zones": tabs("/shares"),
    }
    if view.found is None:
        return {**sections, "list": research.away()}
    asked = [one for one in view.found if _is_asked(one)]
    if asked:
        text = "The giver withdrew it, or people whose studies are in it opted out here."
        sections["asked"] = notice("warn", f"{count(len(asked), 'share')} to look at. {text}")
    sections["list"] = el("div", _table(view.found, can_decide=view.can_decide), class_="alone")
    return sections


def _table(found: list[ShareView], *, can_decide: bool) -> Markup:
    columns = (
        Column("When", "tight"),
        Column("From and to", "tight"),
        Column("Studies", "wide"),
        Column("On what grounds", "wide"),
        Column("Standing", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            when(one.at),
            join((f"{one.giver} to {one.receiver}", el("div", code(one.manifest_sha256), class_="sub"))),
            _studies(one),
            join((one.purpose, el("div", one.ethics_number, class_="sub"))),
            _standing(one),
            _act(one) if can_decide else "",
        )
        for one in found
    ]
    empty = nothing("Nothing was shared.", "Studies are given and received with the command cloister share.")
    return table("Shared studies", columns, rows, empty=empty)


def _studies(one: ShareView) -> Markup:
    people, instances = count(one.subjects, "subject"), count(one.instances, "instance")
    lines: list[Markup | str] = [f"{count(one.studies, 'study', 'studies')} of {people}, {instances}"]
    if one.folder:
        lines.append(el("div", f"in {one.folder}", class_="sub"))
    if one.no_longer_here and one.step in STANDS:
        gone = f"{count(one.no_longer_here, 'instance')} gone from here, or of people who opted out"
        lines.append(el("div", gone, class_="sub"))
    return join(lines)


def _standing(one: ShareView) -> Markup:
    standing = badge(one.step, tone=_TONES.get(one.step, "ok"))
    if one.pending is None:
        return standing
    return join((standing, el("div", f"{one.pending}: not in the ledger yet", class_="sub")))


def _is_asked(one: ShareView) -> bool:
    if one.given:
        return one.step in STANDS and one.no_longer_here > 0
    return one.step == "withdrawn" and one.pending is None


def _act(one: ShareView) -> Markup | str:
    """Return the one step that this site may take next."""
    described = f"share between {one.giver} and {one.receiver}"
    if one.pending is not None:
        return ""
    if one.given and one.step in STANDS:
        ask = Ask("Ask the receiver, on the record of all sites, to erase these studies?")
        return button("withdraw", "Withdraw", ask=ask, described=described, id=one.id)
    if not one.given and one.step in {"received", "withdrawn"}:
        ask = Ask("Erase these studies here, and say so to all sites? They cannot be brought back.")
        return button("erase", "Erase", ask=ask, style="danger", described=described, id=one.id)
    return ""


def _step(step: str, said: str) -> Callable[[Desk, Viewer, Mapping[str, str]], str]:
    def act(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        research.act(lambda: desk.research.share_step(fields.get("id", ""), step, viewer.user_id))
        return said

    return act


def announce(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Say what the coordinator does not know yet, and learn what other sites said."""
    del viewer, fields
    waiting = sum(one.pending is not None for one in research.act(desk.research.announce_shares))
    if waiting:
        return f"{count(waiting, 'step')} could not be told yet."
    return "The coordinator knows every step, and this site what the others said."


PAGE: Final = Page(
    path="/shares",
    title="Shared studies",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "withdraw": Action(
            Right.APPROVE_PROTOCOL, _step("withdraw", "Withdrawn: the receiver is asked to erase it.")
        ),
        "erase": Action(Right.APPROVE_PROTOCOL, _step("erase", "Erased here, and all sites are told.")),
        "announce": Action(Right.APPROVE_PROTOCOL, announce),
    },
    refresh_s=10.0,
)
