"""What a site keeps of its last round between peers, so that it goes on whether that round counted or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.errors import WeightsError
from trainer.federation.peering.record import count_array
from trainer.peers import Peer, Replica

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.weights_io import Array, Weights

_BEFORE: Final = "before:"
_SAID: Final = "said:"
_HELD: Final = "held:"
_HELD_VERSION: Final = "held-version:"
_VERSION: Final = "version"
_SAID_VERSION: Final = "said-version"
_TAKEN: Final = "taken:"


@dataclass(frozen=True, eq=False)
class Kept:
    """One round at a site.

    Parameters
    ----------
    before : Peer
        What the site goes on with where the round did not count.
    said : Replica
        What others may hold of the site where it did.
    taken : Mapping
        By other site, the version that was merged in the round, before training.
    """

    before: Peer
    said: Replica
    taken: Mapping[str, int]

    def arrays(self) -> Weights:
        """Return it as the arrays of a file."""
        found: Weights = {
            _VERSION: count_array(self.before.version),
            _SAID_VERSION: count_array(self.said.version),
        }
        found |= {_BEFORE + name: array for name, array in self.before.weights.items()}
        found |= {_SAID + name: array for name, array in self.said.weights.items()}
        found |= {_TAKEN + site: count_array(number) for site, number in self.taken.items()}
        for site, held in self.before.known.items():
            found[_HELD_VERSION + site] = count_array(held.version)
            found |= {f"{_HELD}{site}:{name}": array for name, array in held.weights.items()}
        return found


def read_kept(arrays: Mapping[str, Array]) -> Kept:
    """Read what :meth:`Kept.arrays` made; raises WeightsError where it is not that."""
    try:
        before = _below(arrays, _BEFORE)
        known = {
            name.removeprefix(_HELD_VERSION): Replica(
                _count(array), _below(arrays, f"{_HELD}{name.removeprefix(_HELD_VERSION)}:")
            )
            for name, array in arrays.items()
            if name.startswith(_HELD_VERSION)
        }
        version = _count(arrays[_VERSION])
        taken = {site: _count(array) for site, array in _below(arrays, _TAKEN).items()}
        said = Replica(_count(arrays[_SAID_VERSION]), _below(arrays, _SAID))
    except (KeyError, ValueError) as error:
        raise WeightsError("what a site keeps of its last round: expected models and versions") from error
    return Kept(Peer(before, 0, {} if version else before, version, known), said, taken)


def _below(arrays: Mapping[str, Array], prefix: str) -> Weights:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def _count(array: Array) -> int:
    return int(np.asarray(array).reshape(()))
