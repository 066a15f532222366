"""What becomes of a round's updates: the coordinator aggregates, or a drawn site does and it checks."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from appliance import logs
from appliance.federation import messages, progress
from appliance.federation.collection import MOST_LEASES, Collection
from appliance.federation.wayback import whole
from trainer import strategies
from trainer.errors import UpdateError
from trainer.federation import aggregation, rounds, swarming
from trainer.federation.aggregation import Aggregate, Judgement
from trainer.federation.errors import AggregationError
from trainer.strategies.swarm import leader
from trainer.weights_io import mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvflare.apis.shareable import Shareable

    from appliance.federation.answers import Answer
    from appliance.federation.book import Checkpoint, Counted
    from trainer.federation.plan import Plan

PASSED_OVER = "round.leader_passed_over"

_LOG = logs.logger(__name__)


@dataclass(frozen=True, eq=False)
class Led:
    """A round's aggregate, and the site that made it; none where the coordinator did."""

    result: Aggregate
    site: str

    def marked(self, counted: Sequence[Counted]) -> list[Counted]:
        """Return what goes into the book, with a mark at the site that aggregated."""
        return [
            replace(one, metrics={**one.metrics, progress.LED: True}) if one.site == self.site else one
            for one in counted
        ]


def settle(
    plan: Plan,
    standing: Checkpoint,
    updates: Sequence[aggregation.Update],
    ask: Callable[[str, Mapping[str, Any]], Answer | None],
) -> Led:
    """Aggregate a round as its strategy says; where a site does, ``ask`` hands the round over to it."""
    rule = strategies.get(plan.strategy.name)
    if rule.led_by_site:
        return lead(plan, standing, updates, ask)
    found = rounds.aggregate(plan, standing.number + 1, standing.weights, standing.state, updates)
    return Led(found, "")


def order(
    plan: Plan,
    number: int,
    sites: frozenset[str],
    arrays: Mapping[str, Any],
    quiet: frozenset[str] = frozenset(),
) -> tuple[Shareable, messages.Order, Collection]:
    """Return what is sent to sites that are asked beside training, and how long their answers are waited for.

    Parameters
    ----------
    quiet : frozenset of str
        Who fell silent: it is asked and not waited for.
    """
    told = messages.Order(plan.sha256, number, aggregation.fingerprint(arrays), plan.round_timeout_s)
    at, limit_s = time.monotonic(), MOST_LEASES * plan.round_timeout_s
    awaited, wait_s = sites - quiet, plan.straggler_wait_s if len(sites) > 1 else 0.0
    collection = Collection(sites, awaited, 1, plan.round_timeout_s, wait_s, at, limit_s=limit_s)
    return whole(arrays, number), told, collection


def lead(
    plan: Plan,
    standing: Checkpoint,
    updates: Sequence[aggregation.Update],
    ask: Callable[[str, Mapping[str, Any]], Answer | None],
) -> Led:
    """Have a drawn site aggregate a round; one that gives no usable model is passed over.

    Parameters
    ----------
    ask : callable
        Sends a site the round to aggregate, and returns its answer.

    Raises
    ------
    AggregationError
        If fewer than ``min_sites`` updates are usable, or no site gives a usable model.
    """
    judgements = [aggregation.judge(standing.weights, update, plan.bounds) for update in updates]
    usable = [
        strategies.Contribution(update.site, update.delta, judgement.samples)
        for update, judgement in zip(updates, judgements, strict=True)
        if judgement.reason is None
    ]
    if len(usable) < plan.min_sites:
        raise AggregationError(f"{len(usable)} usable updates; expected at least {plan.min_sites}")
    # What goes to the site is read from where the updates lie, however many there are.
    arrays = swarming.bundle(standing.weights, [replace(one, delta=mapped(one.delta)) for one in usable])
    left = {one.site for one in usable}
    while left:
        site = leader(standing.number + 1, left, plan.seed)
        left.remove(site)
        proposed, reason = _word(plan, standing, usable, ask(site, arrays))
        if proposed is not None:
            return Led(Aggregate(proposed, {}, _scored(judgements, usable)), site)
        _LOG.warning(PASSED_OVER, site=site, reason=reason)
    raise AggregationError("no site gave a model that is made of the round's updates")


def _word(
    plan: Plan, standing: Checkpoint, usable: Sequence[strategies.Contribution], answer: Answer | None
) -> tuple[dict[str, Any] | None, str]:
    """Return the model that a site made of the round, or None and why it does not count."""
    if answer is None or answer.said.code:
        return None, "no answer" if answer is None else answer.said.code
    proposed = aggregation.fitted(standing.weights, answer.arrays)
    try:
        swarming.check_word(standing.weights, proposed, usable, plan.strategy.parameters)
    except UpdateError as error:
        return None, str(error)
    return proposed, ""


def _scored(
    judgements: Sequence[Judgement], usable: Sequence[strategies.Contribution]
) -> tuple[Judgement, ...]:
    scores = strategies.anomaly_scores(usable)
    return tuple(replace(one, anomaly=scores.get(one.site)) for one in judgements)
