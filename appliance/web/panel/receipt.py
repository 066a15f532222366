"""Receipts as a list, and one of them whole: what left the building in a round, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.engine import reading
from appliance.web.panel import research
from appliance.web.panel.markup import DASH, count, el, join, size, when
from appliance.web.panel.page import Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    card,
    code,
    facts,
    grid,
    link,
    nothing,
    page_head,
    stack,
    table,
    tile,
)

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.federation import views
    from appliance.web.desk import Desk, Viewer


_KINDS: Final = {"finalize": "evaluation", "aggregate": "aggregation", "send": "model for a peer"}


@dataclass(frozen=True)
class ReceiptPageView:
    """A receipt; None when the research zone does not answer."""

    receipt: views.ReceiptView | None
    people: Mapping[str, str]


def load(desk: Desk, viewer: Viewer, query: Query) -> ReceiptPageView:
    """Ask the research zone."""
    del viewer
    wanted = query.text("receipt_id")
    found = research.ask(lambda: desk.research.receipt(wanted))
    with reading(desk.zone.engine) as session:
        return ReceiptPageView(found, users.names(session))


def draw(view: ReceiptPageView, viewer: Viewer) -> Drawing:
    """Draw the receipt."""
    del viewer
    row = view.receipt
    if row is None:
        return {"head": page_head("Receipt", back=("/federation", "Federation")), "body": research.away()}
    kind = _KINDS.get(row.kind, "training")
    return {
        "head": page_head(
            f"Receipt of round {row.number}",
            marks=_genuine(row),
            lead=f"{row.body.get('site', '')}, {kind}. Signed with this site's research key.",
            back=(f"/federation/runs/{row.run_id}", row.run_id),
        ),
        "tiles": _tiles(row),
        "now": grid(
            card("What it was for", facts(_purpose(row, view.people))),
            card("What it cost", _cost(row.body.get("privacy"))),
            class_="wide-left",
        ),
        "tensors": card("Tensors that left", _tensors(row.body)),
        "figures": card("Figures that left beside them", _figures(row.body)),
    }


def _genuine(row: views.ReceiptView) -> Markup:
    if row.genuine:
        return badge("ok", tone="ok", text="genuine")
    return badge("bad", tone="bad", text="not genuine")


def _tiles(row: views.ReceiptView) -> Markup:
    norm, tensors = row.body.get("update_norm"), row.body.get("tensors") or []
    return grid(
        tile("Left the building", size(row.size_bytes), note=count(len(tensors), "tensor")),
        tile(
            "Size of the update",
            f"{norm:.3g}" if isinstance(norm, int | float) else DASH,
            note="L2 norm, as it counts",
        ),
        tile("Learned from", count(row.samples, "case"), note=_skipped(row.body)),
        tile("Signed", when(row.created_at)),
        class_="tiles",
    )


def _skipped(body: Mapping[str, Any]) -> str:
    skipped = body.get("skipped") or {}
    reasons = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in skipped.items())
    return f"of {body.get('eligible', 0)} instances; " + (
        f"skipped: {reasons}" if reasons else "none skipped"
    )


def _purpose(row: views.ReceiptView, people: Mapping[str, str]) -> list[tuple[str, object]]:
    body = row.body
    approver = str(body.get("approved_by") or "")
    return [
        ("Run", link(f"/federation/runs/{row.run_id}", row.run_id)),
        ("Approved by", people.get(approver, approver) or "unknown"),
        ("Ethics number", body.get("ethics_number") or "none in the plan"),
        ("Plan", _hash(body.get("plan_sha256"))),
        ("Global model", _hash(body.get("global_model_sha256"))),
        ("Update", _hash(body.get("update_sha256"))),
        ("For", ", ".join(body.get("recipients") or ()) or "the coordinator"),
        ("Data set", _hash(body.get("dataset_sha256"))),
        ("Receipt", _hash(row.body_sha256)),
    ]


def _hash(value: object) -> Markup:
    return el("code", str(value), class_="whole") if value else el("span", DASH, class_="none")


def _cost(spent: object) -> Markup:
    if not isinstance(spent, dict):
        return nothing(
            "No differential privacy.",
            "The plan promised none, so this update carries no noise that hides people.",
        )
    return facts(
        [
            ("Mechanism", f"{spent['mechanism']}, noise from a {spent['noise_source']} source"),
            ("This round", f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}"),
            ("All rounds so far", f"epsilon {spent['epsilon_total']:.4g}"),
            ("Left of the budget", f"epsilon {spent['epsilon_left']:.4g}"),
            ("This run so far", f"epsilon {spent['run_epsilon']:.4g} at delta {spent['run_delta']:g}"),
        ]
    )


def _tensors(body: Mapping[str, Any]) -> Markup:
    columns = (
        Column("Name", "wide"),
        Column("Type", "tight"),
        Column("Shape", "tight"),
        Column("Bytes", "number"),
        Column("Norm", "number"),
    )
    rows = [
        (
            el("code", one["name"]),
            one["dtype"],
            " x ".join(map(str, one["shape"])) or "one number",
            one["size_bytes"],
            f"{one['norm']:.4g}",
        )
        for one in body.get("tensors") or []
    ]
    empty = nothing("No tensors.", "Measuring a final model sends figures alone.")
    return table("Tensors", columns, rows, empty=empty)


def _figures(body: Mapping[str, Any]) -> Markup:
    names = ", ".join(map(str, body.get("metric_names") or [])) or "none"
    return el("p", f"{names}; and the count of cases. No noise protects them.")


def listed(receipts: tuple[views.ReceiptView, ...], empty: Markup) -> Markup:
    """Draw receipts, the newest first."""
    columns = (
        Column("Round", "wide"),
        Column("What left", "wide"),
        Column("Size", "number"),
        Column("Learned from", "number"),
        Column("Receipt", "tight"),
        Column("Signed", "tight"),
    )
    rows = [
        (
            stack(
                join((link(f"/federation/runs/{row.run_id}", row.run_id), f" · round {row.number}")),
                el("small", _KINDS.get(row.kind, "training")),
            ),
            _what_left(row.body),
            size(row.size_bytes),
            count(row.samples, "case"),
            stack(
                _genuine(row),
                link(f"/federation/receipts/{row.id}", code(row.body_sha256)),
            ),
            when(row.created_at),
        )
        for row in receipts
    ]
    return table("Receipts", columns, rows, empty=empty)


def _what_left(body: Mapping[str, Any]) -> Markup:
    tensors, metrics = body.get("tensors") or body.get("tensor_names") or [], body.get("metric_names") or []
    norm = body.get("update_norm")
    size = f", norm {norm:.3g}" if isinstance(norm, int | float) else ""
    update = f"a difference of {count(len(tensors), 'tensor')}{size}" if tensors else "no tensors"
    figures = f"and {count(len(metrics), 'figure')}: {', '.join(map(str, metrics))}" if metrics else ""
    cost = body.get("privacy")
    spent = (
        f"{cost['mechanism']}: epsilon {cost['epsilon']:.3g}, {cost['epsilon_total']:.3g} in all, "
        f"{cost['epsilon_left']:.3g} left"
        if isinstance(cost, Mapping)
        else ""
    )
    small = [el("small", text) for text in (figures, spent) if text]
    return stack(update, *small)


PAGE: Final = Page(
    path="/federation/receipts/{receipt_id}",
    title="Receipt",
    right=Right.VIEW,
    load=load,
    draw=draw,
    menu="/federation",
)
