"""Federation: protocols that ask to run here, the runs, and the receipts of what left the building."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.base import now
from appliance.db.engine import reading
from appliance.web.panel import budget_parts, charts, protocol_parts, receipt, research
from appliance.web.panel.markup import DASH, count, el, join, when
from appliance.web.panel.page import Action, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    code,
    facts,
    grid,
    link,
    meter,
    nothing,
    page_head,
    stack,
    table,
)

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.federation import views
    from appliance.web.desk import Desk, Viewer

RECEIPTS: Final = 50


@dataclass(frozen=True)
class FederationView:
    """The site's part in federations; ``reachable`` is false when the research zone does not answer."""

    reachable: bool
    site: str
    enabled: bool
    summary: views.Summary | None
    protocols: tuple[views.ProtocolView, ...]
    runs: tuple[views.RunView, ...]
    receipts: tuple[views.ReceiptView, ...]
    budget: views.BudgetView | None
    people: Mapping[str, str]
    can_decide: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> FederationView:
    """Ask the research zone."""
    del query
    client = desk.research
    found = research.ask(
        lambda: (
            client.summary(),
            client.protocols(),
            client.runs(),
            client.receipts(limit=RECEIPTS),
            client.budget(),
        )
    )
    with reading(desk.zone.engine) as session:
        people = users.names(session)
    decides = Right.APPROVE_PROTOCOL in viewer.rights
    settings = desk.settings.federation
    if found is None:
        return FederationView(
            reachable=False,
            site=settings.site,
            enabled=settings.enabled,
            summary=None,
            protocols=(),
            runs=(),
            receipts=(),
            budget=None,
            people=people,
            can_decide=decides,
        )
    summary, protocols, runs, receipts, budget = found
    return FederationView(
        reachable=True,
        site=summary.site,
        enabled=summary.federation_enabled,
        summary=summary,
        protocols=tuple(protocols),
        runs=tuple(run for run in runs if run.rounds),
        receipts=tuple(receipts),
        budget=budget,
        people=people,
        can_decide=decides,
    )


def draw(view: FederationView, viewer: Viewer) -> Drawing:
    """Draw protocols, runs and receipts."""
    del viewer
    lead = f"This site is {view.site}. " + (
        "A protocol runs here only after a person has approved exactly its plan."
        if view.enabled
        else "The federation is switched off; see federation.enabled in the configuration."
    )
    lead += certificate(view.summary)
    if not view.reachable:
        return {"head": page_head("Federation", lead=lead), "body": research.away()}
    return {
        "head": page_head("Federation", lead=lead),
        "now": grid(
            card("Protocols", _protocols(view)),
            el("div", _latest_run(view), _cohort(view), class_="column"),
            class_="wide-left",
        ),
        "runs": card("Runs", _runs(view)),
        "receipts": card(
            "What left the building", _receipts(view), aside="one signed receipt for each round"
        ),
    }


def certificate(summary: views.Summary | None) -> str:
    """Say how long the certificate is good with which this site connects."""
    ends = None if summary is None else summary.certificate_ends_at
    if ends is None:
        return ""
    if ends <= now():
        return f" Its certificate expired on {ends:%Y-%m-%d}, refused from then on: see cloister doctor."
    return f" Its certificate is good until {ends:%Y-%m-%d} and renews by itself."


def _cohort(view: FederationView) -> Markup:
    summary = view.summary
    if summary is None:
        return el("div")
    labels = ", ".join(f"{label.name}: {label.positive} yes, {label.negative} no" for label in summary.labels)
    rows: list[tuple[str, object]] = [
        (
            "De-identified",
            f"{count(summary.instances, 'instance')} of {count(summary.subjects, 'person', 'people')}",
        ),
        ("Opted out", summary.opted_out),
        ("Labels", labels or "none yet: cloister labels import FILE.csv"),
        ("Last crossing", when(summary.last_import_at)),
        ("Privacy budget", budget_parts.draw(view.budget, can_set=view.can_decide)),
    ]
    return card("Research data here", facts(rows))


def _latest_run(view: FederationView) -> Markup | None:
    if not view.runs:
        return None
    run = max(view.runs, key=lambda one: one.last_activity_at)
    name, title = figure(run)
    series = charts.Series(view.site, points(run, name))
    area = charts.lines(title, [series], rounds=max(run.total_rounds, 1), within=(0, 1))
    aside = link(
        f"/federation/runs/{run.run_id}", f"{run.name}, round {run.finished_rounds} of {run.total_rounds}"
    )
    return card(f"{title} of the latest run", area, aside=aside)


def points(run: views.RunView, name: str) -> tuple[charts.Point, ...]:
    """Return a figure of all rounds, as the points of a curve."""
    known = ((one.number, interval(one.metrics, name)) for one in run.rounds)
    return tuple(charts.Point(number, *found) for number, found in known if found is not None)


def _protocols(view: FederationView) -> Markup:
    if not view.protocols:
        return nothing(
            "No protocol has asked to run here.",
            "When the coordinator submits a run, its plan appears here for a person to approve or refuse.",
        )
    return join(_protocol(row, view) for row in view.protocols)


def _protocol(row: views.ProtocolView, view: FederationView) -> Markup:
    enough = row.cohort >= row.minimum_cohort
    cohort = badge(
        "ok", tone="ok" if enough else "warn", text=f"{row.cohort} here, {row.minimum_cohort} needed"
    )
    decided = view.people.get(row.decided_by or "", row.decided_by)
    rows: list[tuple[str, object]] = [
        ("Learns", f"{row.label} on {', '.join(row.modalities) or 'any modality'} with {row.network}"),
        ("Cohort", cohort),
        (
            "Rounds",
            f"{row.total_rounds} by {protocol_parts.strategy(row)}, at least {count(row.min_sites, 'site')}",
        ),
        ("Bounds", protocol_parts.bounds(row)),
        ("Updates", protocol_parts.readers(row)),
        ("Expires", when(row.expires_at)),
        ("Ethics number", row.ethics_number or "none in the plan"),
        ("Computing here", protocol_parts.hours(row)),
        ("Plan", code(row.plan_sha256, length=16)),
    ]
    if row.reason and row.decided_at is None:
        rows.append(("Note", row.reason))
    if row.decided_at is not None:
        rows.append(
            ("Decided", stack(join((when(row.decided_at), f" by {decided}" if decided else "")), row.reason))
        )
    preflight = protocol_parts.preflight(row, can_ask=view.can_decide)
    head = el("div", el("h3", row.name), badge(row.state), class_="head")
    whole = el(
        "details",
        el("summary", "The whole plan"),
        el("pre", el("code", json.dumps(row.plan, indent=2, ensure_ascii=False)), class_="plan"),
        id=f"plan-{row.id}",
    )
    decisions = _decisions(row, view)
    new = protocol_parts.comparison(row)
    return el("article", head, facts(rows), new, preflight, whole, decisions, class_="protocol")


def _decisions(row: views.ProtocolView, view: FederationView) -> Markup | None:
    if not view.can_decide:
        return None
    approve = button(
        "approve",
        "Approve",
        described=row.name,
        style="primary",
        id=row.id,
        shown=row.shown_sha256,
        ask=Ask(
            f"Approve {row.name}? This site then trains in up to {row.total_rounds} rounds; "
            "only bounded, signed model updates leave."
        ),
    )
    refuse = button(
        "refuse",
        "Refuse",
        described=row.name,
        style="danger",
        id=row.id,
        ask=Ask(f"Refuse {row.name}?", "Reason"),
    )
    suspend = button(
        "suspend",
        "Suspend",
        described=row.name,
        style="danger",
        id=row.id,
        ask=Ask(f"Suspend {row.name}? No further round runs here.", "Reason"),
    )
    pause = button(
        "pause",
        "Pause",
        described=row.name,
        id=row.id,
        ask=Ask(
            f"Pause {row.name}? A round under way stops, and no update leaves until you resume.", "Reason"
        ),
    )
    resume = button("resume", "Resume", described=row.name, style="primary", id=row.id)
    leave = button(
        "leave",
        "Leave",
        described=row.name,
        style="danger",
        id=row.id,
        ask=Ask(
            f"Leave the run of {row.name}? This is final: this site cannot join that run again.", "Reason"
        ),
    )
    offered = {
        "pending": (approve, refuse),
        "approved": (pause, suspend, leave),
        "paused": (resume, suspend, leave),
        "suspended": (approve, refuse, leave),
        "refused": (),
    }
    return el("span", offered.get(row.state, ()), class_="buttons")


def _runs(view: FederationView) -> Markup:
    columns = (
        Column("Run", "wide"),
        Column("Progress", "wide"),
        Column("AUC or Dice here", "number"),
        Column("Strategy", "tight"),
        Column("Protocol", "tight"),
        Column("Last activity", "tight"),
    )
    rows = [
        (
            stack(link(f"/federation/runs/{row.run_id}", row.name), el("small", row.run_id)),
            meter(
                "Rounds",
                row.finished_rounds / max(1, row.total_rounds),
                f"{row.finished_rounds} of {row.total_rounds}",
            ),
            last_figure(row),
            row.strategy,
            badge(row.protocol_state),
            when(row.last_activity_at),
        )
        for row in view.runs
    ]
    empty = nothing(
        "No round has run here yet.",
        "Rounds begin once a protocol is approved and the coordinator starts the run.",
    )
    return table("Runs", columns, rows, empty=empty)


def figure(run: views.RunView) -> tuple[str, str]:
    """Return name and title of the figure that stands for all: Dice of masks, else AUC."""
    return ("dice", "Dice") if any("dice" in one.metrics for one in run.rounds) else ("auc", "AUC")


def last_figure(row: views.RunView) -> str:
    """Return the newest AUC or Dice on this site's held-out cases."""
    name, _ = figure(row)
    known = [found for one in row.rounds if (found := interval(one.metrics, name)) is not None]
    return f"{known[-1][0]:.3f}" if known else DASH


def interval(metrics: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Return estimate, lower and upper bound of a figure; None when it is not there."""
    value = metrics.get(name)
    if not isinstance(value, Mapping):
        return None
    numbers = [value.get(key) for key in ("estimate", "low", "high")]
    if not all(isinstance(number, int | float) for number in numbers):
        return None
    estimate, low, high = (float(number) for number in numbers if number is not None)
    return estimate, low, high


def _receipts(view: FederationView) -> Markup:
    return receipt.listed(
        view.receipts, nothing("Nothing has left the building.", "Each round leaves a signed receipt here.")
    )


def _decide(decision: str, said: str) -> Action:
    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        reason = fields.get("reason", "").strip() or None
        shown = fields.get("shown", "") if decision == "approve" else ""
        research.act(
            lambda: desk.research.decide(fields.get("id", ""), decision, viewer.user_id, reason, shown)
        )
        return said

    return Action(Right.APPROVE_PROTOCOL, run)


def _ask_preflight(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    research.act(lambda: desk.research.preflight(fields.get("id", ""), viewer.user_id))
    return "Preflight asked for: its result appears here."


PAGE: Final = Page(
    path="/federation",
    title="Federation",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "approve": _decide("approve", "Approved: rounds of this plan run here from now on."),
        "refuse": _decide("refuse", "Refused."),
        "suspend": _decide("suspend", "Suspended: no further round runs here."),
        "preflight": Action(Right.APPROVE_PROTOCOL, _ask_preflight),
        "budget": Action(Right.APPROVE_PROTOCOL, budget_parts.change),
        "pause": _decide("pause", "Paused: nothing of it runs here or leaves until you resume."),
        "resume": _decide("resume", "Resumed: this site takes part again."),
        "leave": _decide("leave", "Left: this site takes no part in that run any more."),
    },
)
