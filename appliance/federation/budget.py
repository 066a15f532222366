"""What differential privacy has cost the people whose studies are here, and what staff allow.

There is one budget for everybody in the research zone. Whoever is in two cohorts, by label or modality, would
escape from two separate ones; so every round of every run counts against all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.research import PrivacyBudget, PrivacySpending
from appliance.federation.errors import FederationError
from trainer.federation.gate import Cost
from trainer.federation.receipt import Spent
from trainer.privacy.accountant import Release, epsilon

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.db.research import Round
    from appliance.ledger import Ledger
    from trainer.federation.plan import Plan

BUDGET_SET: Final = "privacy.budget_set"
CHARGED: Final = "privacy.charged"
MAX_EPSILON: Final = 1e3
MIN_DELTA: Final = 1e-12
MAX_DELTA: Final = 0.01


class BudgetError(FederationError):
    """A budget that cannot be set, or a cost that is not booked."""


@dataclass(frozen=True)
class Budget:
    """What staff allow and what is spent, both at ``delta``; ``rounds`` were charged."""

    epsilon: float
    delta: float
    spent: float
    rounds: int
    set_by: str

    @property
    def left(self) -> float:
        """What is left, 0 at least."""
        return max(self.epsilon - self.spent, 0.0)


def current(session: Session) -> Budget | None:
    """Return the budget; None while staff have set none."""
    row = _newest(session)
    if row is None:
        return None
    spendings = _releases(session)
    return Budget(row.epsilon, row.delta, epsilon(spendings, row.delta), len(spendings), row.set_by)


def set_budget(session: Session, ledger: Ledger, allowed: float, delta: float, actor: str) -> Budget:
    """Set what everybody here may lose; what is spent stays spent.

    Raises
    ------
    BudgetError
        If a number is out of range.
    """
    if not 0 <= allowed <= MAX_EPSILON:
        raise BudgetError(f"epsilon: expected 0 to {MAX_EPSILON:g}")
    if not MIN_DELTA <= delta <= MAX_DELTA:
        raise BudgetError(f"delta: expected {MIN_DELTA:g} to {MAX_DELTA:g}")
    row = PrivacyBudget(epsilon=float(allowed), delta=float(delta), set_by=actor[:64])
    session.add(row)
    session.flush()
    body = {"epsilon": row.epsilon, "delta": row.delta}
    ledger.append(session, kind=BUDGET_SET, subject_id=row.id, body=body, actor=actor)
    spendings = _releases(session)
    return Budget(row.epsilon, row.delta, epsilon(spendings, row.delta), len(spendings), row.set_by)


def cost(session: Session, plan: Plan, *, required: bool, booked: bool) -> Cost:
    """Return what the gate needs to know about the next round of a plan.

    ``booked``: it costs nothing more, since it was charged before, or trains nothing.
    """
    allowed = _newest(session, lock=True)  # PostgreSQL: two rounds at once must not both fit
    required = required or allowed is not None
    if plan.privacy is None or allowed is None:
        return Cost(required=required, booked=booked)
    next_one = [] if booked else [plan.privacy.round_cost(plan.task)]
    return Cost(
        required=required,
        booked=booked,
        budget=allowed.epsilon,
        spent=epsilon([*_releases(session), *next_one], allowed.delta),
        run_spent=epsilon([*_releases(session, plan.run_id), *next_one], plan.privacy.delta),
    )


def has_spent(session: Session, plan: Plan) -> bool:
    """Whether a round of this plan's run was charged here."""
    found = select(PrivacySpending.id).where(PrivacySpending.run_id == plan.run_id).limit(1)
    return session.scalar(found) is not None


def charge(session: Session, ledger: Ledger, plan: Plan, row: Round) -> None:
    """Book what a round costs, in the transaction that admits it: before anything is trained.

    One that starts anew is charged anew, though at most one of its updates leaves.
    """
    if plan.privacy is None:
        return
    price = plan.privacy.round_cost(plan.task)
    session.add(
        PrivacySpending(
            round_id=row.id,
            run_id=plan.run_id,
            mechanism=plan.privacy.mechanism,
            noise_multiplier=price.noise_multiplier,
            sampling_rate=price.sampling_rate,
            releases=price.count,
        )
    )
    session.flush()
    body: dict[str, float | str] = {"round_id": row.id}
    allowed = _newest(session)
    if allowed is not None:
        body |= {"epsilon_total": epsilon(_releases(session), allowed.delta), "delta": allowed.delta}
    ledger.append(session, kind=CHARGED, subject_id=row.id, body=body)


def spent(session: Session, plan: Plan, row: Round) -> Spent | None:
    """Return what a round cost, for its receipt; None where the plan promises nothing.

    Raises
    ------
    BudgetError
        If the cost is not booked, or the noise was not secure: such an update must not leave.
    """
    if plan.privacy is None:
        return None
    budget = current(session)
    booked = select(PrivacySpending.id).where(PrivacySpending.round_id == row.id).limit(1)
    if budget is None or session.scalar(booked) is None:
        raise BudgetError("the round's privacy cost is not booked")
    if row.noise_source != "secure":
        raise BudgetError("the update carries no noise of a secure source")
    return Spent(
        mechanism=plan.privacy.mechanism,
        epsilon=epsilon([plan.privacy.round_cost(plan.task)], budget.delta),
        epsilon_total=budget.spent,
        epsilon_left=budget.left,
        delta=budget.delta,
        run_epsilon=epsilon(_releases(session, plan.run_id), plan.privacy.delta),
        run_delta=plan.privacy.delta,
        noise_source=row.noise_source,
    )


def _newest(session: Session, *, lock: bool = False) -> PrivacyBudget | None:
    newest = select(PrivacyBudget).order_by(PrivacyBudget.number.desc()).limit(1)
    return session.scalar(newest.with_for_update() if lock else newest)


def _releases(session: Session, run_id: str | None = None) -> list[Release]:
    rows = select(PrivacySpending)
    if run_id is not None:
        rows = rows.where(PrivacySpending.run_id == run_id)
    return [Release(row.noise_multiplier, row.sampling_rate, row.releases) for row in session.scalars(rows)]
