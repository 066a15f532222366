"""Encryption as a plan names it: the scheme, and the sites that get its key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.compression.base import MARK
from trainer.errors import StrategyError, TrainerError
from trainer.strategies import get
from trainer.strategies.fedavg import FedAvg

CKKS: Final = "ckks"
ENCRYPTED: Final = f"{MARK}ckks."  # how the names of ciphertexts begin
MAX_NORM: Final = 1e4  # what fits the scheme's numbers beside its precision
MIN_SITES: Final = 2
MAX_RECIPIENTS: Final = 100
_SITE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")


class EncryptionError(TrainerError):
    """An encryption that is none, a key that is not one, or numbers that do not decrypt to a model."""


@dataclass(frozen=True)
class Encryption:
    """Who can read updates and models of a run.

    Parameters
    ----------
    recipients : Mapping
        Site to its Ed25519 public key, hexadecimal: the one that signs in the consortium's ledger. These
        sites, and nobody else, get the secret key of the scheme.

    Raises
    ------
    EncryptionError
        For fewer than two recipients, or what is no name or key.
    """

    recipients: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check."""
        if not MIN_SITES <= len(self.recipients) <= MAX_RECIPIENTS:
            raise EncryptionError(
                f"encryption.recipients: expected {MIN_SITES} to {MAX_RECIPIENTS} sites with their keys"
            )
        for site, key in self.recipients.items():
            if not isinstance(site, str) or not _SITE.fullmatch(site):
                raise EncryptionError("encryption.recipients: expected names of sites")
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise EncryptionError("encryption.recipients: expected 64 lower-case hexadecimal digits")
        if len(set(self.recipients.values())) != len(self.recipients):
            raise EncryptionError("encryption.recipients: a key twice; expected one of each site")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {"scheme": CKKS, "recipients": dict(sorted(self.recipients.items()))}

    @classmethod
    def from_json(cls, value: object) -> Encryption:
        """Read JSON values; raises EncryptionError."""
        if not isinstance(value, Mapping) or set(value) != {"scheme", "recipients"}:
            raise EncryptionError("encryption: expected an object of scheme and recipients")
        if value["scheme"] != CKKS:
            raise EncryptionError(f"encryption.scheme: expected {CKKS}")
        if not isinstance(value["recipients"], Mapping):
            raise EncryptionError("encryption.recipients: expected an object of sites and keys")
        return cls(dict(value["recipients"]))

    def check_fits(self, strategy: str, compression: str | None, min_sites: int, max_norm: float) -> None:
        """Raise EncryptionError where the coordinator would have to see what it cannot."""
        check_strategy(strategy)
        check_compression(compression)
        if not MIN_SITES <= min_sites <= len(self.recipients):
            raise EncryptionError(
                f"min_sites: expected {MIN_SITES} to {len(self.recipients)}: one site's mean is its update"
            )
        if max_norm > MAX_NORM:
            raise EncryptionError(f"max_update_norm: expected at most {MAX_NORM:g} with encryption")


def check_compression(name: str | None) -> None:
    """Raise EncryptionError for a compression whose packed updates do not add up."""
    if name not in {None, "turns"}:
        raise EncryptionError("encryption: expected no compression, or turns: sums are all that works")


def check_strategy(name: str) -> None:
    """Raise EncryptionError for a strategy that does more with updates than to average them."""
    try:
        rule = get(name)
        averages = isinstance(rule, FedAvg) and not rule.led_by_site
    except StrategyError as error:
        raise EncryptionError(f"encryption: {error}") from error
    if not averages:
        raise EncryptionError(
            f"encryption: {name} looks into single updates; expected a strategy that averages them"
        )
