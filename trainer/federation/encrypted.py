"""One round's aggregation where the coordinator cannot read updates: form, weights and sums alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.encryption import ckks, model
from trainer.errors import UpdateError
from trainer.federation.aggregation import Aggregate, Judgement, claims, fingerprint
from trainer.federation.errors import AggregationError
from trainer.strategies.fedavg import rate_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.federation.aggregation import Array, Update
    from trainer.federation.plan import Plan


def aggregate(plan: Plan, standing: Mapping[str, Array], number: int, updates: Sequence[Update]) -> Aggregate:
    """Check all updates and add the mean of those that pass to the encrypted model.

    Norms, anomalies and single numbers are out of the coordinator's sight. Each site bounds its own update,
    and checks the model that it decrypts.

    Raises
    ------
    AggregationError
        If fewer than ``min_sites`` updates are usable.
    """
    key = ckks.Key.of_coordinator()
    names = model.expected(model.first_of(standing), plan.turns, number)
    judgements = tuple(_judge(key, names, update, plan) for update in updates)
    usable = sorted(
        ((update, one) for update, one in zip(updates, judgements, strict=True) if one.reason is None),
        key=lambda pair: pair[0].site,
    )
    if len(usable) < plan.min_sites:
        raise AggregationError(f"{len(usable)} usable updates; expected at least {plan.min_sites}")
    total = sum(one.samples for _, one in usable)
    shares = [one.samples / total for _, one in usable]
    deltas = [update.delta for update, _ in usable]
    weights = model.combined(key, standing, deltas, shares, rate_of(plan.strategy.parameters))
    return Aggregate(weights, {}, judgements)


def _judge(key: ckks.Key, names: Sequence[str], update: Update, plan: Plan) -> Judgement:
    claimed, samples, reason = claims(update, plan.bounds)
    if reason is None:
        try:
            _check(key, names, update.delta)
        except UpdateError as error:
            reason = str(error)
    return Judgement(update.site, samples, claimed, fingerprint(update.delta), reason)


def _check(key: ckks.Key, names: Sequence[str], delta: Mapping[str, Array]) -> None:
    if set(delta) != set(names):
        raise UpdateError("names", "encrypted update: other ciphertexts than the plan's round has")
    for name in names:
        key.check(delta[name])
