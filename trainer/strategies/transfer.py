"""The model travels: one site trains it at a time and hands it on, in turn or as chance has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.errors import StrategyError
from trainer.strategies.base import WholeModel, apply_step, checked, only
from trainer.strategies.lots import lot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

TURN: Final = "turn:"
"""Before a site's name: the transfer in which it trained last, counted from 1."""


class Transfer(WholeModel):
    """What both share: nothing is averaged, the next model is that of the one site that trained."""

    one_at_a_time = True

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for any parameter."""
        only(parameters, frozenset())

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Take over the site's model; its number of cases has no part in it."""
        self.check_parameters(parameters)
        found = checked(global_weights, contributions)
        if len(found) != 1:
            raise StrategyError(f"{len(found)} updates; expected that of the one site that trained")
        return apply_step(global_weights, found[0].delta), self._next(state, found[0].site)

    def _next(self, state: Mapping[str, Array], site: str) -> State:
        del site
        return dict(state)


class Cyclic(Transfer):
    """Cyclic weight transfer: the site whose last turn is longest ago trains, by name where that is equal.

    Without absences that is a ring in the order of names. Who was away has its turn when it is back.

    References
    ----------
    Chang et al., Distributed deep learning networks among institutions for medical imaging, JAMIA 2018;
    Zerka et al., Blockchain for Privacy Preserving and Trustworthy Distributed Machine Learning in
    Multicentric Medical Imaging (C-DistriM), IEEE Access 2020.
    """

    def participants(
        self, number: int, sites: Collection[str], seed: int, state: Mapping[str, Array]
    ) -> tuple[str, ...]:
        """Return the one site whose turn it is."""
        del number, seed
        if not sites:
            raise StrategyError("nobody is there to train; expected at least one site")
        return (min(sites, key=lambda site: (_turn(state, site), site)),)

    def _next(self, state: Mapping[str, Array], site: str) -> State:
        turn = 1 + max((int(array) for array in state.values()), default=0)
        return {**state, TURN + site: np.array(turn, dtype=np.int64)}


class RandomTransfer(Transfer):
    """The site that trains is drawn anew for each round, evenly, from seed, round and who is there.

    Every site has a lot per round, the lowest trains: if it fails, the choice among the others is theirs
    already, and whoever knows the seed can check all choices.
    """

    def participants(
        self, number: int, sites: Collection[str], seed: int, state: Mapping[str, Array]
    ) -> tuple[str, ...]:
        """Return the one site that was drawn."""
        del state
        if not sites:
            raise StrategyError("nobody is there to train; expected at least one site")
        return (min(sites, key=lambda site: lot("transfer", seed, number, site)),)


def _turn(state: Mapping[str, Array], site: str) -> int:
    return int(state.get(TURN + site, np.array(0)))
