"""Server-side optimisers: the mean update is taken for a gradient, by momentum, Adam or Yogi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from trainer.errors import StrategyError, UpdateError
from trainer.strategies.base import WholeModel, apply_step, is_statistic, number, only, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

FIRST: Final = "first:"
SECOND: Final = "second:"
_MOMENTUM: Final = frozenset({"server_learning_rate", "beta1"})
_ADAPTIVE: Final = _MOMENTUM | {"beta2", "tau"}


@dataclass(frozen=True)
class ServerOptimizer(WholeModel):
    """FedAvgM, FedAdam or FedYogi.

    Parameters of ``fedavgm``: ``server_learning_rate`` (1), ``beta1`` (0.9). Of the others:
    ``server_learning_rate`` (0.01), ``beta1`` (0.9), ``beta2`` (0.99), ``tau`` (0.001).

    The state holds the first moment of each floating-point parameter, and the second of the adaptive ones,
    in float32 at least. The second starts at ``tau`` squared and neither is corrected for its start, as in
    the paper's algorithm 2. Integers and running statistics of batch normalisation move by the plain mean: a
    variance that an optimiser moves may become negative.

    References
    ----------
    Reddi et al., Adaptive Federated Optimization, ICLR 2021 (FedAdam, FedYogi); Hsu, Qi and Brown, Measuring
    the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019 (FedAvgM).
    """

    kind: Literal["fedavgm", "fedadam", "fedyogi"]

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, _MOMENTUM if self.kind == "fedavgm" else _ADAPTIVE)
        self._rate(parameters)
        _beta(parameters, "beta1", 0.9)
        _beta(parameters, "beta2", 0.99)
        _tau(parameters)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move the global model by the optimiser's step along the weighted mean of the updates."""
        self.check_parameters(parameters)
        step = dict(weighted_mean(global_weights, contributions))
        next_state: State = {}
        for name, array in global_weights.items():
            if array.dtype.kind == "f" and not is_statistic(name):
                step[name], moments = self._step(name, array, step[name], state, parameters)
                next_state.update(moments)
        return apply_step(global_weights, step), next_state

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return the bound of the first moment, scaled; running statistics move by the plain mean beside it.

        What the adaptive ones divide by is ``tau`` at least.
        """
        beta1, moment = _beta(parameters, "beta1", 0.9), 0.0
        for one in norms:
            moment = beta1 * moment + max(one)
        scale = self._rate(parameters)
        if self.kind != "fedavgm":
            scale *= (1 - beta1) / _tau(parameters)
        return math.hypot(scale * moment, max(norms[-1]))

    def _step(
        self,
        name: str,
        array: Array,
        mean: Array,
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Array, State]:
        beta1 = _beta(parameters, "beta1", 0.9)
        before = _moment(state, FIRST + name, array, 0.0)
        if self.kind == "fedavgm":
            first = _kept(name, array, beta1 * before + mean)
            return self._rate(parameters) * first.astype(np.float64), {FIRST + name: first}
        tau = _tau(parameters)
        first = _kept(name, array, beta1 * before + (1 - beta1) * mean)
        second = _kept(name, array, self._second(name, array, mean, state, parameters))
        root = np.sqrt(second.astype(np.float64)) + tau
        step = self._rate(parameters) * first.astype(np.float64) / root
        return step, {FIRST + name: first, SECOND + name: second}

    def _second(
        self,
        name: str,
        array: Array,
        mean: Array,
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> Array:
        beta2, tau = _beta(parameters, "beta2", 0.99), _tau(parameters)
        before = _moment(state, SECOND + name, array, tau * tau)
        with np.errstate(over="ignore"):
            square = np.square(mean)
        if self.kind == "fedadam":
            return np.asarray(beta2 * before + (1 - beta2) * square)
        return np.asarray(before - (1 - beta2) * square * np.sign(before - square))

    def _rate(self, parameters: Mapping[str, Any]) -> float:
        default = 1.0 if self.kind == "fedavgm" else 0.01
        return number(parameters, "server_learning_rate", default, 1e-6, 10.0)


def _beta(parameters: Mapping[str, Any], name: str, default: float) -> float:
    return number(parameters, name, default, 0.0, 0.9999)


def _tau(parameters: Mapping[str, Any]) -> float:
    return number(parameters, "tau", 1e-3, 1e-9, 1.0)


def _moment(state: Mapping[str, Array], key: str, array: Array, start: float) -> Array:
    """Return a moment in float64: as the state has it, or its start where no round has made a state yet."""
    if not state:
        return np.full(array.shape, start, dtype=np.float64)
    found = state.get(key)
    if found is None or found.shape != array.shape or found.dtype.kind != "f":
        raise StrategyError(f"{key}: the strategy's state does not fit the model; expected {array.shape}")
    return found.astype(np.float64)


def _kept(name: str, array: Array, moment: Array) -> Array:
    """Return a moment as it is kept: what the next round starts from, in whatever process."""
    with np.errstate(over="ignore"):
        kept = np.asarray(moment).astype(np.result_type(array.dtype, np.float32))
    if not bool(np.isfinite(kept).all()):
        raise UpdateError("not_finite", f"{name}: the strategy's state is not finite")
    return np.asarray(kept)
