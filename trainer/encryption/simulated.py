"""Encryption in a simulation: the sites' key and the coordinator's sums, in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trainer.encryption import ckks, model
from trainer.encryption.spec import check_compression, check_strategy
from trainer.strategies.fedavg import rate_of
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.compression import Compression
    from trainer.local_round import LocalUpdate
    from trainer.weights_io import Weights


class Consortium:
    """Sites with one key, and a coordinator without it.

    Raises
    ------
    EncryptionError
        For a strategy that looks into single updates, or a compression that does not add up.
    """

    def __init__(
        self,
        first: Mapping[str, Any],
        strategy: str,
        parameters: Mapping[str, Any],
        compression: Compression | None,
    ) -> None:
        check_strategy(strategy)
        check_compression(None if compression is None else compression.name)
        self._turns = 1 if compression is None else compression.turns
        self._rate = rate_of(parameters)
        self._sites, self._coordinator = ckks.Key.of_sites(ckks.new_secret()), ckks.Key.of_coordinator()
        self._standing: Weights = dict(first)

    @property
    def model_bytes(self) -> int:
        """Bytes of the model as it comes to a site."""
        return len(to_bytes(self._standing))

    def round(self, number: int, updates: Mapping[str, LocalUpdate]) -> tuple[Weights, dict[str, int]]:
        """Return the next model as the sites read it, and the bytes that left each."""
        ordered = sorted(updates)
        sent = [model.encrypted(self._sites, updates[site].leaving, self._turns, number) for site in ordered]
        total = sum(update.samples for update in updates.values())
        shares = [updates[site].samples / total for site in ordered]
        self._standing = model.combined(self._coordinator, self._standing, sent, shares, self._rate)
        read = model.readable(self._sites, self._standing, self._turns, math.inf)
        return read, {site: len(to_bytes(one)) for site, one in zip(ordered, sent, strict=True)}
