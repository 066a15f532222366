"""Compression as a plan names it: a codec, its parameters, and what goes with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.compression.base import (
    MARK,
    CompressionError,
    Draw,
    Packed,
    check_finite,
    floats_of,
    whole_of,
)
from trainer.compression.codecs import Eight, Half, Sketch, TopK, Turns
from trainer.errors import UpdateError
from trainer.strategies.base import clip_update, update_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.compression.base import Array, Codec, Weights

NAMES: Final = ("float16", "int8", "top-k", "sketch", "turns")
RESIDUAL: Final = f"residual{MARK}"  # what a site keeps for its next update
BEFORE: Final = f"before{MARK}"  # the same before the last one, should that not count
_DEFAULTS: Final[dict[str, dict[str, float]]] = {
    "float16": {},
    "int8": {},
    "top-k": {"share": 0.05},
    "sketch": {"share": 0.5, "bits": 4.0},
    "turns": {"count": 4.0},
}
_BOUNDS: Final = {"share": (1e-6, 1.0), "bits": (1.0, 8.0), "count": (1.0, 64.0)}
_BOTH_WAYS: Final = "both_ways"
_WHOLE: Final = frozenset({"bits", "count"})
RESIDUAL_NORM: Final = 20.0  # the most that a site keeps for later, in units of the largest norm


@dataclass(frozen=True)
class Compression:
    """How updates are packed; ``parameters`` are those of the codec, all of them after construction.

    ``both_ways``: the global model travels packed, too, as a step from the one before
    (:mod:`trainer.compression.steps`).

    Raises
    ------
    CompressionError
        For an unknown name or parameter, or one out of range.
    """

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    both_ways: bool = False

    def __post_init__(self) -> None:
        """Check, and fill in what is not given."""
        if self.name not in NAMES:
            raise CompressionError(f"compression: expected one of {', '.join(NAMES)}")
        known = _DEFAULTS[self.name]
        for name, value in self.parameters.items():
            if name not in known:
                expected = ", ".join(known) or "none"
                raise CompressionError(f"compression.{str(name)[:40]}: unknown; expected {expected}")
            low, high = _BOUNDS[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise CompressionError(f"compression.{name}: expected a number from {low:g} to {high:g}")
            if name in _WHOLE and value != int(value):
                raise CompressionError(f"compression.{name}: expected a whole number")
        filled = {name: float(self.parameters.get(name, value)) for name, value in known.items()}
        object.__setattr__(self, "parameters", filled)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        both_ways = {_BOTH_WAYS: True} if self.both_ways else {}
        return {"name": self.name, "parameters": dict(self.parameters), **both_ways}

    @classmethod
    def from_json(cls, value: object) -> Compression:
        """Read JSON values; raises CompressionError."""
        if not isinstance(value, Mapping) or set(value) - {_BOTH_WAYS} != {"name", "parameters"}:
            raise CompressionError("compression: expected an object of name and parameters")
        if value.get(_BOTH_WAYS, True) is not True:
            raise CompressionError(f"compression.{_BOTH_WAYS}: expected true, or no such field")
        if not isinstance(value["name"], str) or not isinstance(value["parameters"], Mapping):
            raise CompressionError("compression: expected a name and an object of numbers")
        return cls(value["name"], value["parameters"], _BOTH_WAYS in value)

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``NAME`` or ``NAME:PARAMETER=NUMBER,...,both_ways``; raises CompressionError."""
        name, _, rest = text.partition(":")
        parameters, parts = {}, [part for part in rest.split(",") if part]
        for part in parts:
            if part == _BOTH_WAYS:
                continue
            key, _, number = part.partition("=")
            try:
                parameters[key] = float(number)
            except ValueError as error:
                raise CompressionError("compression: expected NAME or NAME:PARAMETER=NUMBER,...") from error
        return cls(name, parameters, _BOTH_WAYS in parts)

    def check_fits(self, *, readable: bool) -> None:
        """Raise CompressionError where no step of a global model can be packed, but is to be.

        ``readable``: the coordinator makes the global model and can read it.
        """
        if self.both_ways and not readable:
            raise CompressionError(
                "compression.both_ways: expected a global model that the coordinator makes and can read"
            )

    def pack(
        self, update: Mapping[str, Array], kept: Mapping[str, Array], max_norm: float, draw: Draw
    ) -> Packed:
        """Pack an update together with what earlier ones left out.

        What the largest norm cuts off is left out as well, and waits for the next update. The residual is
        scaled down to ``RESIDUAL_NORM`` largest norms: what has waited longer than that says is forgotten.

        Parameters
        ----------
        update : Mapping
            Within ``max_norm``.
        kept : Mapping
            :attr:`Packed.residual` of the last update that counted; empty before the first.
        max_norm : float
            Largest L2 norm of what the coordinator unpacks.
        draw : Draw
            Of site and round.
        """
        floats = floats_of(update)
        wanted = {name: array + kept[name] if name in kept else array for name, array in floats.items()}
        arrays, unpacked = self._bounded(wanted, max_norm, draw)
        whole = whole_of(update)
        exact = {name: unpacked[name].astype(array.dtype) for name, array in floats.items()}
        left: Weights = {}
        if self._codec.remembers:
            left = {name: np.asarray(wanted[name] - exact[name]) for name in floats}
            left = clip_update(left, RESIDUAL_NORM * max_norm)
        return Packed({**arrays, **whole}, {**exact, **whole}, left)

    def _bounded(self, wanted: Mapping[str, Array], max_norm: float, draw: Draw) -> tuple[Weights, Weights]:
        """Pack so that what is unpacked has at most the largest norm; return both."""
        scaled = dict(wanted)
        while True:
            arrays = self._codec.pack(scaled, draw)
            unpacked = self._codec.unpack(arrays, wanted, draw)
            norm = update_norm(unpacked)
            if norm <= max_norm:
                return arrays, unpacked
            scaled = {name: array * (0.999 * max_norm / norm) for name, array in scaled.items()}

    def unpack(self, arrays: Mapping[str, Array], reference: Mapping[str, Array], draw: Draw) -> Weights:
        """Return an update in the shapes and dtypes of ``reference`` from what arrived, which is not trusted.

        Raises
        ------
        UpdateError
            If the arrays are not what this codec makes of an update of such a model.
        """
        expected = self.template(reference)
        if set(expected) != set(arrays):
            raise UpdateError("names", "packed update: other arrays than this compression makes")
        for name, one in expected.items():
            if arrays[name].shape != one.shape or arrays[name].dtype != one.dtype:
                raise UpdateError("shape", f"packed update: {name}: another shape or type")
        floats = floats_of(reference)
        whole = {name: np.asarray(arrays[name]) for name in whole_of(reference)}
        with np.errstate(over="ignore", invalid="ignore"):
            unpacked = self._codec.unpack(arrays, floats, draw)
            exact = {name: unpacked[name].astype(array.dtype) for name, array in floats.items()}
        for name, array in exact.items():
            check_finite(array, f"packed update: {name}")
        return {**exact, **whole}

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return arrays of the shapes and dtypes that a packed update has; they take no memory."""
        if any(MARK in name for name in reference):
            raise CompressionError(f"compression: expected a model without {MARK} in its arrays' names")
        return {**self._codec.template(floats_of(reference)), **whole_of(reference)}

    def most_moved(self, sizes: Sequence[int], moved: Sequence[float], since: int) -> float:
        """Return how far packed steps can have moved a model, as an L2 norm.

        What is left comes later, so steps come to what they were to say, and what was left before, less what
        is left after. Nor is any longer than what was packed allows.

        Parameters
        ----------
        sizes : sequence of int
            Numbers in each array that is packed.
        moved : sequence of float
            By round, all from the first one: the longest that its step can have been.
        since : int
            So many of these rounds are not asked about.
        """
        codec = self._codec
        left = codec.left(moved, sizes)[since:]
        each = [codec.longest(kept + one, sizes) for kept, one in zip(left, moved[since:], strict=False)]
        if not codec.remembers:
            return math.fsum(each)
        return min(math.fsum(each), math.fsum(moved[since:]) + left[0] + left[-1])

    @property
    def turns(self) -> int:
        """In how many parts the numbers take turns; 1 where each round sends all or chooses anew."""
        return int(self.parameters["count"]) if self.name == "turns" else 1

    @property
    def remembers(self) -> bool:
        """Whether a site keeps something for its next update."""
        return self._codec.remembers

    @property
    def _codec(self) -> Codec:
        if self.name == "float16":
            return Half()
        if self.name == "int8":
            return Eight()
        if self.name == "top-k":
            return TopK(self.parameters["share"])
        if self.name == "turns":
            return Turns(int(self.parameters["count"]))
        return Sketch(self.parameters["share"], int(self.parameters["bits"]))


def draw_of(seed: int, site: str, number: int) -> Draw:
    """Return what a site packs with in a round, and the coordinator unpacks with."""
    digest = hashlib.sha256(f"pack/{seed}/{site}/{number}".encode()).digest()
    return Draw(int.from_bytes(digest[:8], "big"), number)


def taken_over(own: Mapping[str, Array], *, counted: bool) -> tuple[Weights, Weights]:
    """Split what a site kept into what its strategy keeps and the residual that the next update adds.

    An update that did not count took nothing from the residual.
    """
    wanted = RESIDUAL if counted else BEFORE
    residual = {name.removeprefix(wanted): one for name, one in own.items() if name.startswith(wanted)}
    return {name: one for name, one in own.items() if MARK not in name}, residual


def with_residual(
    own: Mapping[str, Array], residual: Mapping[str, Array], before: Mapping[str, Array]
) -> Weights:
    """Return what a site keeps, its strategy's and the residual after and before an update."""
    return {
        **own,
        **{RESIDUAL + name: one for name, one in residual.items()},
        **{BEFORE + name: one for name, one in before.items()},
    }
