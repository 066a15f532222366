"""The privacy budget on the page of the federation: what is spent, and the change of what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.federation.budget import MAX_EPSILON
from appliance.web.panel import research
from appliance.web.panel.markup import count
from appliance.web.panel.page import ActionRefusedError
from appliance.web.panel.parts import Ask, button, stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.federation import views
    from appliance.web.desk import Desk, Viewer

DELTA: Final = 1e-5  # of a first budget


def draw(budget: views.BudgetView | None, *, can_set: bool) -> Markup:
    """Draw what is spent, with the way to change what is allowed."""
    return stack(_words(budget), _button() if can_set else None)


def change(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Set epsilon; delta stays, or is the command's default."""
    try:
        epsilon = float(fields.get("reason", "").strip().replace(",", "."))
    except ValueError as error:
        raise ActionRefusedError("Not set: expected epsilon as a number, such as 8.") from error
    if not 0 <= epsilon <= MAX_EPSILON:
        raise ActionRefusedError(f"Not set: expected epsilon from 0 to {MAX_EPSILON:g}.")
    client = desk.research
    delta = research.act(client.budget).delta
    research.act(lambda: client.set_budget(epsilon, DELTA if delta is None else delta, viewer.user_id))
    return f"Set: all runs together may cost epsilon {epsilon:g}."


def _button() -> Markup:
    return button(
        "budget",
        "Set the budget",
        ask=Ask(
            "How much may all runs together cost the people here? From then on no plan without differential "
            "privacy runs here, and what is spent stays spent.",
            "Epsilon, a number (smaller protects more)",
        ),
    )


def _words(budget: views.BudgetView | None) -> str:
    if budget is None or budget.epsilon is None:
        return "none set: plans with differential privacy are refused"
    return (
        f"epsilon {budget.spent:.3g} of {budget.epsilon:g} spent at delta {budget.delta:g}, "
        f"{count(budget.rounds, 'round')} charged"
    )
