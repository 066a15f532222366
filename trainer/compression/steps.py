"""The way back: what the global model moved by in a round, packed for the sites that have the one before.

The step is what both ends unpack, so the next global model is the same wherever it is made, and sites that
lack the one before get it whole. What a step leaves out stays with the coordinator for the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer.compression.base import MARK
from trainer.compression.spec import draw_of
from trainer.errors import UpdateError
from trainer.strategies import streams
from trainer.strategies.base import apply_step, is_statistic
from trainer.weights_io import difference, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trainer.compression.base import Array, Draw, Weights
    from trainer.compression.spec import Compression

LEFT: Final = f"left{MARK}"  # in what the coordinator keeps beside the strategy's state


@dataclass(frozen=True, eq=False)
class Step:
    """A round's step.

    Parameters
    ----------
    arrays : dict of ndarray
        What travels.
    weights : dict of ndarray
        The global model that it leads to.
    left : dict of ndarray
        What it does not say, under names of ``LEFT``.
    """

    arrays: Weights
    weights: Weights
    left: Weights


class WayBack:
    """The global model's way to the sites of a simulation: what it becomes on it, and what it takes."""

    def __init__(self, compression: Compression | None, seed: int) -> None:
        self._compression, self._seed = compression, seed
        self._left: Weights = {}
        self._bytes: dict[str, int] = {}  # by site that has the model before

    @classmethod
    def of(cls, compression: Compression | None, seed: int, *, readable: bool = True) -> WayBack:
        """Return the way of a run; raises CompressionError where it is to be packed and cannot be."""
        if compression is not None:
            compression.check_fits(readable=readable)
        return cls(compression if compression is not None and compression.both_ways else None, seed)

    def bytes_to(self, sites: Iterable[str]) -> dict[str, int]:
        """Return what came to those of the sites to which a step came in this round."""
        return {site: self._bytes[site] for site in sites if site in self._bytes}

    def moved(self, number: int, before: Weights, after: Weights, sites: Iterable[str]) -> Weights:
        """Return the global model after a round, as a packed step leads to it."""
        if self._compression is None:
            return after
        step = take(self._compression, drawn(self._seed, number), before, after, self._left)
        self._left = step.left
        self._bytes = dict.fromkeys(sites, len(to_bytes(step.arrays)))
        return step.weights


def take(
    compression: Compression,
    draw: Draw,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    state: Mapping[str, Array],
) -> Step:
    """Pack the step from one global model to the next, together with what earlier steps left.

    Running statistics of batch normalisation travel whole: a variance must not become negative.

    Parameters
    ----------
    draw : Draw
        Of :func:`drawn`.
    state : Mapping
        Where the last step's ``left`` is.
    """
    exact, coarse = _apart(difference(after, before))
    kept = {name.removeprefix(LEFT): array for name, array in state.items() if name.startswith(LEFT)}
    packed = compression.pack(coarse, kept, math.inf, draw)
    weights = apply_step(before, {**packed.update, **exact})
    left = {LEFT + name: array for name, array in packed.residual.items()}
    return Step({**packed.arrays, **exact}, weights, left)


def follow(
    compression: Compression, draw: Draw, before: Mapping[str, Array], arrays: Mapping[str, Array]
) -> Weights:
    """Return the global model that a step leads to, from what arrived, which is not trusted.

    Raises
    ------
    UpdateError
        If the arrays are no step of such a model.
    """
    exact, coarse = _apart(before)
    if not set(exact) <= set(arrays):
        raise UpdateError("names", "step: other arrays than this compression makes")
    for name in exact:
        if arrays[name].shape != exact[name].shape or arrays[name].dtype != exact[name].dtype:
            raise UpdateError("shape", f"step: {name}: another shape or type")
    rest = {name: array for name, array in arrays.items() if name not in exact}
    moved = compression.unpack(rest, coarse, draw)
    return apply_step(before, {**moved, **{name: arrays[name] for name in exact}})


def template(compression: Compression, before: Mapping[str, Array]) -> Weights:
    """Return arrays of the shapes and dtypes that a step from this model has."""
    exact, coarse = _apart(before)
    return {**compression.template(coarse), **exact}


def sizes_of(model: Mapping[str, Array]) -> list[int]:
    """Return how many numbers each array has that a step packs."""
    forms = [(name, *streams.form_of(model, name)) for name in model]
    return [count for name, _, is_float, count in forms if is_float and not is_statistic(name)]


def without(state: Mapping[str, Array]) -> Weights:
    """Return what the strategy itself remembers."""
    return {name: array for name, array in state.items() if not name.startswith(LEFT)}


def drawn(seed: int, number: int) -> Draw:
    """Return what both ends pack the step of a finished round with: that of no site."""
    return draw_of(seed, "", number)


def _apart(arrays: Mapping[str, Array]) -> tuple[Weights, Weights]:
    """Return running statistics, which travel whole, and the rest."""
    exact = {name: array for name, array in arrays.items() if is_statistic(name)}
    return exact, {name: array for name, array in arrays.items() if name not in exact}
