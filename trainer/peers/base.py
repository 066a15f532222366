"""What peer-to-peer ways of learning share: what a site holds, what it sends, the protocol of a rule.

Nobody holds a global model. What a site holds after a round is made of what it held and of the messages that
came to it, by pure functions over arrays that know no engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainer.errors import StrategyError
from trainer.strategies.base import apply_step, check_update
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, Weights


@dataclass(frozen=True, eq=False)
class Replica:
    """What one site knows of another's model; ``version`` 0 is the model that all started from."""

    version: int
    weights: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Peer:
    """What one site holds.

    Parameters
    ----------
    weights : Mapping
        Its model.
    samples : int
        Training cases.
    start : Mapping
        The model that all sites started from.
    version : int
        Of its model, 0 before it has trained.
    known : Mapping
        By site, what it took over of others last, and what others know of itself.
    """

    weights: Mapping[str, Array]
    samples: int
    start: Mapping[str, Array]
    version: int = 0
    known: Mapping[str, Replica] = field(default_factory=lambda: MappingProxyType({}))

    def replica(self, site: str) -> Replica:
        """Return what is known of a site here."""
        return self.known.get(site, Replica(0, self.start))


@dataclass(frozen=True, eq=False)
class Message:
    """Arrays that go from one site to another."""

    sender: str
    receiver: str
    arrays: Mapping[str, Array]

    @property
    def size(self) -> int:
        """Bytes as a weights file."""
        return len(to_bytes(self.arrays))


@dataclass(frozen=True)
class Call:
    """One round as every site knows it; ``there`` are the sites that answer, at least one."""

    number: int
    there: tuple[str, ...]
    seed: int
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Put the sites in the order of their names, whatever order they came in."""
        if not self.there or len(set(self.there)) != len(self.there):
            raise StrategyError("nobody is there, or a site twice; expected at least one site, each once")
        object.__setattr__(self, "there", tuple(sorted(self.there)))


@dataclass(frozen=True, eq=False)
class Exchange:
    """What messages changed: the sites that hold something else now, and who led, where one did."""

    peers: Mapping[str, Peer]
    messages: tuple[Message, ...] = ()
    led_by: str = ""


@dataclass(frozen=True)
class Past:
    """A finished round: by site that trained in it, the most that its update's L2 norm was.

    Without ``told`` nobody told who took part; the norm is the most that any can have had.
    """

    norms: Mapping[str, float]
    told: bool = True

    @property
    def longest(self) -> float:
        """The largest norm."""
        return max(self.norms.values(), default=0.0)


class PeerRule(Protocol):
    """A peer-to-peer way of learning; it keeps nothing and mutates nothing.

    ``one_model`` says that all sites hold the same model, and so send updates of it. ``weighs_samples``: a
    site counts by its cases when models are brought together.
    """

    needs_initial: bool
    one_model: bool
    weighs_samples: bool

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return the weight of the proximal term that sites train with."""

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Return the model that all sites start from."""

    def rounds(self, trainings: int, sites: int) -> int:
        """Return the rounds in which every site trains that many times, on average."""

    def participants(self, call: Call) -> tuple[str, ...]:
        """Return who trains in a round; the same question has one answer."""

    def gather(self, call: Call, peers: Mapping[str, Peer]) -> Exchange:
        """Bring models to those who train, before they do."""

    def spread(self, call: Call, peers: Mapping[str, Peer], trained: Sequence[Trained]) -> Exchange:
        """Take over what training changed, and send what others are to have.

        Raises
        ------
        UpdateError
            If an update or a model does not fit, or is not finite.
        """

    def farthest(
        self, past: Sequence[Past], parameters: Mapping[str, Any], seed: int, sizes: Sequence[int]
    ) -> float:
        """Return how far from the model that all started from any site's can lie, as an L2 norm.

        Parameters
        ----------
        past : sequence of Past
            All rounds from the first one.
        sizes : sequence of int
            Numbers in each array that gradients move.
        """


@dataclass(frozen=True, eq=False)
class Trained:
    """One site's local round; ``leaving`` is its update as it would travel."""

    contribution: Contribution
    leaving: Mapping[str, Array]


class Alone:
    """What all rules share: nothing is prepared, no proximal term, no message before training."""

    needs_initial = False
    one_model = False
    weighs_samples = True

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return 0."""
        del parameters, default
        return 0.0

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Return the network's weights as they are."""
        return dict(initial)

    def rounds(self, trainings: int, sites: int) -> int:
        """Return as many rounds as trainings: all sites train in each."""
        del sites
        return trainings

    def participants(self, call: Call) -> tuple[str, ...]:
        """Return all who are there."""
        return call.there

    def gather(self, call: Call, peers: Mapping[str, Peer]) -> Exchange:
        """Bring nothing."""
        del call, peers
        return Exchange({})

    def farthest(
        self, past: Sequence[Past], parameters: Mapping[str, Any], seed: int, sizes: Sequence[int]
    ) -> float:
        """Return the sum of each round's longest update: a mean of models lies no farther than they do."""
        del parameters, seed, sizes
        return math.fsum(one.longest for one in past)


def blend(
    own: Mapping[str, Array], models: Sequence[Mapping[str, Array]], shares: Sequence[float]
) -> Weights:
    """Return the mean of models in the dtypes of ``own``, for shares that sum to 1; integers are rounded.

    The mean is taken of differences to ``own``, so that counters are exact though float64 holds no int64.

    Raises
    ------
    UpdateError
        If a model has other arrays than ``own`` or is not finite.
    """
    for model in models:
        check_update(own, model)
    step = {}
    for name, array in own.items():
        wide = array.astype(np.float64) if array.dtype.kind == "f" else array
        moved = np.zeros(array.shape, dtype=np.float64)
        for model, share in zip(models, shares, strict=True):
            moved = moved + np.subtract(model[name], wide).astype(np.float64) * share
        step[name] = np.asarray(moved)
    return apply_step(own, step)
