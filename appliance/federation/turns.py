"""One site trains at a time: whoever gives no usable update is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.federation.answers import Answer, silent, to_update
from trainer import strategies
from trainer.federation import aggregation

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.federation.book import Checkpoint
    from trainer.federation.plan import Plan


def travels(plan: Plan) -> bool:
    """Whether one site trains at a time, and the round is that one's."""
    return not plan.own_models and strategies.get(plan.strategy.name).one_at_a_time


def in_turn(
    plan: Plan,
    standing: Checkpoint,
    sites: frozenset[str],
    quiet: Callable[[], frozenset[str]],
    ask: Callable[[frozenset[str]], list[Answer]],
) -> list[Answer]:
    """Ask one site after the other until one gives a usable update; those who did not are answers too.

    Parameters
    ----------
    quiet : callable
        Returns who fell silent: these have their turn after all others failed.
    """
    rule = strategies.get(plan.strategy.name)
    left, answers = sites, []
    while left:
        awake = left - quiet() or left
        chosen = frozenset(rule.participants(standing.number + 1, awake, plan.seed, standing.state))
        left -= chosen
        for answer in ask(chosen) or [silent(site) for site in sorted(chosen)]:
            answers.append(answer)
            if _is_usable(answer, plan, standing):
                return answers
    return answers


def _is_usable(answer: Answer, plan: Plan, standing: Checkpoint) -> bool:
    if answer.said.code:
        return False
    return aggregation.judge(standing.weights, to_update(answer), plan.bounds).reason is None
