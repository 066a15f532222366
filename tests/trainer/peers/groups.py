"""Sites that hold drawn models, and rounds between them without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.peers import PEERS, Call, Exchange, Peer, Trained
from trainer.strategies import Contribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]


def model(value: float = 1.0) -> Arrays:
    return {
        "conv.weight": np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32) * np.float32(value),
        "half": np.array([0.5], dtype=np.float16),
        "scale": np.array(2.0 * value, dtype=np.float64),
        "bn.running_var": np.array([1.0, 2.0], dtype=np.float32),
        "bn.num_batches_tracked": np.array(2**60, dtype=np.int64),
    }


def step(value: float) -> Arrays:
    return {name: np.full(array.shape, value, dtype=array.dtype) for name, array in model().items()}


def group(names: Iterable[str], **samples: int) -> dict[str, Peer]:
    start = model()
    return {name: Peer(start, samples.get(name, 10), start) for name in names}


def played(
    name: str,
    held: Mapping[str, Peer],
    number: int,
    updates: Mapping[str, Arrays],
    *,
    there: Iterable[str] | None = None,
    seed: int = 0,
    parameters: Mapping[str, float] | None = None,
) -> tuple[dict[str, Peer], tuple[Exchange, Exchange]]:
    """Play one round in which who trains comes to the update given for it."""
    rule = PEERS[name]
    call = Call(number, tuple(held if there is None else there), seed, parameters or {})
    before = rule.gather(call, held)
    now = {**held, **before.peers}
    trained = [
        Trained(Contribution(site, updates[site], now[site].samples), updates[site])
        for site in rule.participants(call)
    ]
    after = rule.spread(call, now, trained)
    return {**now, **after.peers}, (before, after)


def pairs(exchanges: Iterable[Exchange]) -> set[tuple[str, str]]:
    """Return who sent something to whom."""
    return {(one.sender, one.receiver) for exchange in exchanges for one in exchange.messages}
