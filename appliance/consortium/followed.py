"""Chains that this process has followed before: of a longer one only what is new is read again.

A federation of years has tens of thousands of blocks, and each order of a coordinator asks about them several
times. What is stored is still compared with what was followed, block by block, by hash.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from appliance.consortium.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from appliance.consortium.block import Signed

MOST: Final = 4  # chains: of one that was left for a new replica nobody asks any more

_chains: Final[dict[str, Chain]] = {}
_lock: Final = threading.Lock()


@contextmanager
def following(session: Session, replica: int, stored: Sequence[Signed]) -> Iterator[Chain]:
    """Give a chain that has followed just these blocks; nobody else has it until the block ends.

    It may be taken further: blocks that are not stored then are noticed at the next time.

    Parameters
    ----------
    session : Session
        Of the database in which the blocks are.
    replica : int
        Which of its chains.

    Raises
    ------
    BlockFormError
        If one of the blocks cannot be read.
    """
    where = f"{session.get_bind().engine.url} {replica}"
    with _lock:
        chain = _chains.pop(where, None)
    known = 0 if chain is None else chain.size
    if chain is None or chain.hashes != [signed.block_hash for signed in stored[:known]]:
        chain = Chain()
    chain.continue_with(stored[chain.size :])
    yield chain
    with _lock:
        _chains[where] = chain
        while len(_chains) > MOST:
            del _chains[next(iter(_chains))]
