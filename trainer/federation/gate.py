"""The site's gate: may this plan's next round run here? A pure decision over facts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from trainer.federation.plan import Plan


class Standing(StrEnum):
    """What the site's people have said about a plan."""

    PENDING = "pending"
    APPROVED = "approved"
    SUSPENDED = "suspended"
    REFUSED = "refused"
    PAUSED = "paused"
    LEFT = "left"


class Refusal(StrEnum):
    """Why a site does not take part."""

    NOT_APPROVED = "not_approved"
    REFUSED = "refused"
    SUSPENDED = "suspended"
    OTHER_PLAN = "other_plan"
    EXPIRED = "expired"
    COHORT_TOO_SMALL = "cohort_too_small"
    NOT_IN_PLAN = "not_in_plan"
    OTHER_MODEL = "other_model"
    PAUSED = "paused"
    LEFT = "left"
    HOURS_SPENT = "hours_spent"
    NO_BUDGET = "no_budget"
    BUDGET_SPENT = "budget_spent"
    PRIVACY_REQUIRED = "privacy_required"
    OTHER_RECIPIENTS = "other_recipients"


@dataclass(frozen=True)
class Cost:
    """What the round that is asked for would have cost, all told, if it were admitted.

    Attributes
    ----------
    required : bool
        Whether this site takes no plan without a promise: staff set a budget, or the configuration says so.
    budget : float, optional
        Epsilon that the staff allow for everybody here; None while they have set none.
    spent : float
        Epsilon at the budget's delta: all rounds of all runs so far, and this one.
    run_spent : float
        Epsilon at the plan's delta: this run's rounds so far, and this one.
    booked : bool
        Whether the round costs nothing more: it was charged before, or trains nothing.
    """

    required: bool = False
    booked: bool = False
    budget: float | None = None
    spent: float = 0.0
    run_spent: float = 0.0


@dataclass(frozen=True)
class Facts:
    """What the site knows when it is asked.

    Attributes
    ----------
    announced_sha256 : str
        Hash under which the request came.
    approved_sha256 : str
        Hash of the plan that the stored decision is about.
    standing : Standing
        The stored decision.
    cohort : int
        Subjects here with this plan's label and modality who have not opted out.
    site_minimum_cohort : int
        The site's own floor, from its configuration.
    number : int
        Round asked for, 1-based; for the final model, the last round.
    on_other_model : bool
        Whether this round ran here on another global model than the one that is offered now. An approved plan
        gives the coordinator one question per round, not as many as it has models.
    hours : float
        What this site has computed for the run so far.
    cost : Cost
        What privacy costs.
    is_recipient : bool
        Whether the key of encrypted updates goes to this site, and to no key but those of the consortium's
        ledger; True where nothing is encrypted.
    """

    now: datetime
    announced_sha256: str
    approved_sha256: str
    standing: Standing
    cohort: int
    site_minimum_cohort: int
    number: int
    on_other_model: bool
    hours: float = 0.0
    cost: Cost = Cost()
    is_recipient: bool = True


@dataclass(frozen=True)
class Admit:
    """The round may run."""


@dataclass(frozen=True)
class Wait:
    """Nobody has decided yet."""


@dataclass(frozen=True)
class Refuse:
    """The round must not run; ``message`` holds counts at most, nothing of a patient."""

    reason: Refusal
    message: str


def decide(plan: Plan, facts: Facts) -> Admit | Wait | Refuse:
    """Decide over one request; whatever is not clearly allowed is refused."""
    hard = _hard_refusal(plan, facts)
    if hard is not None:
        return hard
    if facts.standing in _STANDING_STILL:
        return Refuse(*_STANDING_STILL[facts.standing])
    return _approved(plan, facts) if facts.standing is Standing.APPROVED else Wait()


_STANDING_STILL: Final = {
    Standing.SUSPENDED: (Refusal.SUSPENDED, "the plan is suspended at this site"),
    Standing.REFUSED: (Refusal.REFUSED, "the plan was refused at this site"),
    Standing.PAUSED: (Refusal.PAUSED, "the plan is paused at this site"),
    Standing.LEFT: (Refusal.LEFT, "this site left the run"),
}


def _approved(plan: Plan, facts: Facts) -> Admit | Refuse:
    """Decide over a round of an approved plan."""
    if plan.max_hours is not None and facts.hours >= plan.max_hours:
        return Refuse(Refusal.HOURS_SPENT, "the hours of computing that the plan allows are spent")
    needed = max(plan.minimum_cohort, facts.site_minimum_cohort)
    if facts.cohort < needed:
        return Refuse(Refusal.COHORT_TOO_SMALL, f"fewer than {needed} labelled subjects at this site")
    if facts.on_other_model:
        return Refuse(Refusal.OTHER_MODEL, "this round ran here on another global model")
    return _affordable(plan, facts.cost)


def _affordable(plan: Plan, cost: Cost) -> Admit | Refuse:
    """Decide over what the next round costs in privacy; a round without a promise has no bound."""
    if plan.privacy is None:
        if cost.required:
            return Refuse(Refusal.PRIVACY_REQUIRED, "this site takes no plan without differential privacy")
        return Admit()
    if cost.booked:
        return Admit()
    if cost.budget is None:
        return Refuse(Refusal.NO_BUDGET, "this site's staff have set no privacy budget yet")
    if cost.spent > cost.budget or cost.run_spent > plan.privacy.epsilon:
        return Refuse(Refusal.BUDGET_SPENT, "the privacy budget does not cover another round")
    return Admit()


def _hard_refusal(plan: Plan, facts: Facts) -> Refuse | None:
    """Return what no approval can mend."""
    actual = plan.sha256
    if actual != facts.announced_sha256 or actual != facts.approved_sha256:
        return Refuse(Refusal.OTHER_PLAN, "the plan differs from the one that was announced or decided on")
    if facts.now >= plan.expires_at:
        return Refuse(Refusal.EXPIRED, "the plan has expired")
    if not 1 <= facts.number <= plan.total_rounds:
        return Refuse(Refusal.NOT_IN_PLAN, "the plan has no such round")
    if not facts.is_recipient:
        return Refuse(
            Refusal.OTHER_RECIPIENTS,
            "the plan's encryption key is not for this site, or for other keys than the ledger names",
        )
    return None
