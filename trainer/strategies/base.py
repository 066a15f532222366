"""What every strategy shares: contributions, the check of an update, the weighted mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.errors import StrategyError, UpdateError
from trainer.strategies import streams
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

WEIGHT: Final = "weight:"
_WITHIN: Final = 0.99  # of a type's largest number: far from what rounding moves
_STATISTICS: Final = frozenset({"running_mean", "running_var", "num_batches_tracked"})

Array = NDArray[Any]
Weights = dict[str, Array]
State = dict[str, Array]
"""What a strategy remembers between rounds, as arrays, so that it fits in the checkpoint's file."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """One site's checked update; ``samples`` is its weight in the mean, at least 1.

    ``norm``: what :func:`check_update` returned for this very update and the round's model; None where nobody
    has asked it yet.
    """

    site: str
    delta: Mapping[str, Array]
    samples: int
    norm: float | None = None


class Strategy(Protocol):
    """A way of aggregating; it keeps nothing, mutates nothing and does not depend on the order of sites.

    ``needs_initial`` says that a run starts from an earlier run's model. ``one_at_a_time``: a round is one
    site's, and the model moves on; otherwise all who are there take part. ``led_by_site``: a drawn site
    aggregates, and not the coordinator.
    """

    needs_initial: bool
    one_at_a_time: bool
    led_by_site: bool

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return the weight of the proximal term that sites train with; ``default`` is the task's."""

    def participants(
        self, number: int, sites: Collection[str], seed: int, state: Mapping[str, Array]
    ) -> tuple[str, ...]:
        """Return who trains in a round, of the sites that are there; the same question has one answer.

        Parameters
        ----------
        number : int
            The round's, from 1.
        sites : Collection of str
            Who is there.
        seed : int
            The run's.
        state : Mapping
            What the strategy remembers of the rounds before.

        Raises
        ------
        StrategyError
            If one site has to train and nobody is there.
        """

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Return the first global model of a run, as sites get it, from the network's initial weights.

        Raises
        ------
        StrategyError
            If the strategy cannot work on such a network.
        """

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Return the next global model and the next state.

        Raises
        ------
        UpdateError
            If a contribution does not pass :func:`check_update`.
        StrategyError
            If there is no contribution, a site twice, a weight below 1 or a wrong parameter.
        """

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return how far the last of some rounds can have moved the model at most, as an L2 norm.

        Parameters
        ----------
        norms : sequence of sequence of float
            By round, from the run's first one: L2 norms of the updates that counted.
        """


class WholeModel:
    """What most strategies share: all sites get the network's weights, and train without a proximal term."""

    one_at_a_time = False
    led_by_site = False

    def participants(
        self, number: int, sites: Collection[str], seed: int, state: Mapping[str, Array]
    ) -> tuple[str, ...]:
        """Return all sites, as they were given."""
        del number, seed, state
        return tuple(sites)

    needs_initial = False

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return 0."""
        del parameters, default
        return 0.0

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Return the network's weights as they are."""
        return dict(initial)

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return the longest update's norm: the step is a mean of updates, however they are weighted."""
        del parameters
        return max(norms[-1])


def check_update(
    reference: Mapping[str, Array], delta: Mapping[str, Array], *, max_norm: float | None = None
) -> float:
    """Refuse an update that does not fit the model it claims to change; return its L2 norm.

    Parameters
    ----------
    reference : Mapping
        The global model of the round.
    delta : Mapping
        The site's update.
    max_norm : float, optional
        Largest L2 norm over all floating-point arrays.

    Raises
    ------
    UpdateError
        For missing or unknown names, another shape or dtype, NaN or infinity, or too large a norm.
    """
    if set(reference) != set(delta):
        missing, unknown = len(set(reference) - set(delta)), len(set(delta) - set(reference))
        raise UpdateError(
            "names", f"{missing} arrays missing, {unknown} unknown; expected those of the global model"
        )
    norm = math.sqrt(streams.total(_checked_squares(reference, delta, name) for name in reference))
    if max_norm is not None and not norm <= max_norm:
        raise UpdateError(
            "norm", f"the update is larger than allowed; expected an L2 norm of at most {max_norm}"
        )
    return norm


def _checked_squares(reference: Mapping[str, Array], delta: Mapping[str, Array], name: str) -> float:
    """Return the sum of squares of one array of an update, 0 of integers; raises UpdateError."""
    expected, dtype = streams.layout_of(reference, name)
    is_array = isinstance(delta, Stored) or isinstance(delta[name], np.ndarray)
    shape, found = streams.layout_of(delta, name) if is_array else (None, None)
    if shape != expected:
        raise UpdateError("shape", f"{name}: another shape; expected {expected}")
    if found != dtype or dtype.kind not in "fi":
        raise UpdateError("dtype", f"{name}: another dtype; expected {dtype}, float or signed integer")
    if dtype.kind == "i":
        return 0.0
    squares = streams.squares(delta, name, math.prod(expected))
    if not math.isfinite(squares) and not streams.is_finite(delta, name, math.prod(expected)):
        raise UpdateError("not_finite", f"{name}: NaN or infinity; expected finite numbers")
    return squares


def update_norm(delta: Mapping[str, Array]) -> float:
    """Return the L2 norm over all floating-point arrays, computed in float64."""
    forms = [(name, *streams.form_of(delta, name)) for name in delta]
    return math.sqrt(
        streams.total(streams.squares(delta, name, count) for name, _, is_float, count in forms if is_float)
    )


def clip_update(delta: Mapping[str, Array], max_norm: float, norm: float | None = None) -> Weights:
    """Return an update whose L2 norm is at most ``max_norm``: scaled down as a whole where it was larger.

    Only floating-point arrays are scaled; counters have no part in the norm. ``norm`` is that of the update,
    where it is known.

    References
    ----------
    Geyer, Klein and Nabi, Differentially Private Federated Learning: A Client Level Perspective, 2017;
    McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
    """
    clipped, norm = dict(delta), update_norm(delta) if norm is None else norm
    scale = 1.0
    while not norm <= max_norm:
        scale *= (1.0 - 1e-6) * max_norm / norm  # the little less is for what rounding adds
        clipped = {
            name: np.asarray(array.astype(np.float64) * scale).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in delta.items()
        }
        norm = update_norm(clipped)
    return clipped


def checked(reference: Mapping[str, Array], contributions: Sequence[Contribution]) -> list[Contribution]:
    """Return contributions in the order of their sites' names, each checked alone.

    In a fixed order sums are bit for bit independent of arrival.

    Raises
    ------
    UpdateError
        If a contribution does not pass :func:`check_update`.
    StrategyError
        If there is none, a site twice, or a weight below 1.
    """
    if not contributions:
        raise StrategyError("no contribution to aggregate; expected at least one")
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    if len({contribution.site for contribution in ordered}) != len(ordered):
        raise StrategyError("a site contributed twice; expected one update of each")
    for contribution in ordered:
        if contribution.samples < 1:
            raise StrategyError(
                f"{contribution.site}: weight below 1; expected the number of training samples"
            )
        if contribution.norm is None:
            check_update(reference, contribution.delta)
    return ordered


def weighted_mean(
    reference: Mapping[str, Array], contributions: Sequence[Contribution]
) -> Mapping[str, Array]:
    """Return the mean update in float64, weighted by samples; shapes as in ``reference``, 0-d included."""
    ordered = checked(reference, contributions)
    total = sum(contribution.samples for contribution in ordered)
    return mean_by_share(reference, ordered, [one.samples / total for one in ordered])


def mean_by_share(
    reference: Mapping[str, Array], ordered: Sequence[Contribution], shares: Sequence[float]
) -> Mapping[str, Array]:
    """Return the mean update in float64 for shares that sum to 1; each array is made when it is asked for."""
    deltas = [one.delta for one in ordered]
    return streams.Combined(reference, partial(streams.weighted_sum, deltas, shares))


def site_weights(state: Mapping[str, Array]) -> dict[str, float]:
    """Return the weights that a strategy gave its sites in the round that left this state, where it did."""
    return {
        name.removeprefix(WEIGHT): float(array) for name, array in state.items() if name.startswith(WEIGHT)
    }


def weights_state(ordered: Sequence[Contribution], shares: Sequence[float]) -> State:
    """Return what :func:`site_weights` reads."""
    return {WEIGHT + one.site: np.array(share) for one, share in zip(ordered, shares, strict=True)}


def apply_step(reference: Mapping[str, Array], step: Mapping[str, Array]) -> Weights:
    """Return ``reference + step`` in the dtypes of ``reference``; integers are rounded to the nearest.

    Raises
    ------
    UpdateError
        If the sum leaves the range of a dtype.
    """
    result = {}
    for name, array in reference.items():
        change = step if isinstance(step, streams.Combined) else {name: step[name]}
        moved = np.empty_like(array, order="C")
        for first, last in streams.spans(array.size):
            moved.reshape(-1)[first:last] = _moved(
                name, array.reshape(-1)[first:last], streams.part(change, name, first, last)
            )
        result[name] = moved
    return result


def roomy(reference: Mapping[str, Array], norm: float) -> frozenset[str]:
    """Return the floating-point arrays of a model that no step of this L2 norm leads out of their range."""
    found = []
    for name, array in reference.items():
        if array.dtype.kind == "f":
            flat, room = array.reshape(-1), float(np.finfo(array.dtype).max) * _WITHIN - norm
            if all(float(np.abs(flat[first:last]).max()) < room for first, last in streams.spans(flat.size)):
                found.append(name)
    return frozenset(found)


def check_step(
    reference: Mapping[str, Array], delta: Mapping[str, Array], safe: Collection[str] = ()
) -> None:
    """Raise UpdateError where :func:`apply_step` would, without making the model; not of what is ``safe``."""
    for name, array in reference.items():
        if name in safe:
            continue
        for first, last in streams.spans(array.size):
            _moved(name, array.reshape(-1)[first:last], streams.part(delta, name, first, last))


def _moved(name: str, array: Array, change: Array) -> Array:
    if array.dtype.kind != "f":
        return _moved_integers(name, array, change)
    with np.errstate(over="ignore"):
        moved = np.asarray(array.astype(np.float64) + change).astype(array.dtype)
    if not bool(np.isfinite(moved).all()):
        raise UpdateError("not_finite", f"{name}: the new global model is not finite")
    return moved


def _moved_integers(name: str, array: Array, step: Array) -> Array:
    """Counters: add in integers, since float64 cannot hold every int64."""
    whole = np.rint(step)
    limits = np.iinfo(array.dtype)
    exact, before = np.asarray(whole).astype(object), array.astype(object)  # Python compares these exactly
    if bool(np.any((exact > limits.max - before) | (-exact > before - limits.min))):
        raise UpdateError("not_finite", f"{name}: the new global model leaves the range of {array.dtype}")
    return np.asarray(array + whole.astype(array.dtype))


def is_statistic(name: str) -> bool:
    """Whether an array is a running statistic of batch normalisation, by PyTorch's names.

    It is measured, not trained: it is averaged whatever a strategy does to parameters.
    """
    return name.rpartition(".")[2] in _STATISTICS


def is_parameter(name: str, array: Array) -> bool:
    """Whether gradients move this array: floating-point, no statistic, nothing that a strategy adds."""
    return array.dtype.kind == "f" and not is_statistic(name) and ":" not in name


def number(parameters: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """Return a numeric parameter within bounds (inclusive).

    Raises
    ------
    StrategyError
        If it is no number or out of bounds.
    """
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StrategyError(f"parameter {name}: expected a number from {low} to {high}")
    return float(value)


def only(parameters: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise StrategyError for a parameter that the strategy does not know."""
    if set(parameters) - allowed:
        expected = ", ".join(sorted(allowed)) or "none"
        raise StrategyError(f"unknown parameter for this strategy; expected {expected}")
