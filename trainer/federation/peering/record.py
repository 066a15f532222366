"""What stands for the model of a finished round: each site's version, and the hash of the model it told of.

It travels and is kept as a weights file. That file's hash is what the consortium's ledger names as the model
of the round, so that all sites have the same record before their eyes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.errors import UpdateError
from trainer.federation.plan import MAX_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trainer.weights_io import Array, Weights

MAX_VERSION: Final = 2**31 - 1
_SITE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PARTS: Final = MappingProxyType({"start": 0, "version": 1, "samples": 1, "said": 2, "known": 2, "packed": 2})
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True)
class Record:
    """Where a run between peers stands after a round.

    Parameters
    ----------
    start : str
        Hash of the model that all started from.
    versions : Mapping
        By site, the version of its model that counts; a site that never counted is not there.
    samples : Mapping
        By site, its training cases, as they count.
    said : Mapping
        By site and version, the hash of what others may hold of that site then.
    known : Mapping
        By site and other site, the version of the other that the first has taken over.
    packed : frozenset of tuple
        Site and other site, where the message that the first has to take over from the other is a difference
        to what it holds of it.
    """

    start: str
    versions: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    samples: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    said: Mapping[tuple[str, int], str] = field(default_factory=lambda: _NOTHING)
    known: Mapping[tuple[str, str], int] = field(default_factory=lambda: _NOTHING)
    packed: frozenset[tuple[str, str]] = frozenset()

    def version(self, site: str) -> int:
        """Return a site's version, 0 where none of it counted yet."""
        return self.versions.get(site, 0)

    def model(self, site: str) -> str:
        """Return the hash of what others may hold of a site now; empty where it told of nothing."""
        return self.said.get((site, self.version(site)), "")

    def there(self, version: int) -> tuple[str, ...]:
        """Return the sites that told of this version."""
        return tuple(sorted(site for site, number in self.said if number == version))

    def arrays(self) -> Weights:
        """Return it as arrays; equal records give equal bytes as a weights file."""
        found: Weights = {"start": hash_array(self.start)}
        found |= {f"version:{site}": count_array(number) for site, number in self.versions.items()}
        found |= {f"samples:{site}": count_array(number) for site, number in self.samples.items()}
        found |= {f"said:{site}:{version}": hash_array(text) for (site, version), text in self.said.items()}
        found |= {f"known:{site}:{other}": count_array(n) for (site, other), n in self.known.items()}
        found |= {f"packed:{site}:{other}": count_array(1) for site, other in self.packed}
        return found


def read(arrays: Mapping[str, Array]) -> Record:
    """Read what :meth:`Record.arrays` made.

    Raises
    ------
    UpdateError
        If it is no record.
    """
    parts: dict[str, dict[Any, Any]] = {name: {} for name in _PARTS}
    for name in arrays:
        kind, *rest = name.split(":")
        if kind not in _PARTS or len(rest) != _PARTS[kind]:
            raise UpdateError("names", "record of a round: expected versions and hashes of sites' models")
        array = np.asarray(arrays[name])
        value = read_hash(array) if kind in {"start", "said"} else read_count(array)
        parts[kind][_key(kind, rest)] = value
    if () not in parts["start"] or set(parts["version"]) != set(parts["samples"]):
        raise UpdateError("names", "record of a round: expected a start, and cases for each version")
    record = Record(
        parts["start"][()],
        parts["version"],
        parts["samples"],
        parts["said"],
        parts["known"],
        frozenset(parts["packed"]),
    )
    _check(record)
    return record


def is_one(names: Collection[str]) -> bool:
    """Whether these are the names of a record's arrays, and not of a model's."""
    return "start" in names and all(name.partition(":")[0] in _PARTS for name in names)


def standing(number: int, arrays: Mapping[str, Array], digest: str) -> Record:
    """Return the record that a run stands at after so many rounds; before the first it is its start model's.

    Parameters
    ----------
    arrays : Mapping
        The start model before the first round, the record's arrays after it.
    digest : str
        Hash of their weights file.
    """
    return Record(digest) if number == 0 else read(arrays)


def hash_array(text: str) -> Array:
    """Return a SHA-256 as uint8 of shape (32,)."""
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8)


def count_array(value: int) -> Array:
    """Return a count as int64 of shape (1,): an array without dimensions would not travel as one."""
    return np.array([value], dtype=np.int64)


def read_hash(array: Array) -> str:
    """Read a SHA-256; raises UpdateError for anything else."""
    if array.dtype != np.uint8 or array.shape != (32,):
        raise UpdateError("shape", "a model's hash: expected 32 bytes")
    return array.tobytes().hex()


def read_count(array: Array) -> int:
    """Read a count; raises UpdateError for anything else."""
    if array.dtype != np.int64 or array.shape != (1,) or not 0 <= int(array[0]) <= MAX_VERSION:
        raise UpdateError("shape", "a count: expected one whole number from 0")
    return int(array[0])


def check_site(name: str) -> str:
    """Return a site's name; raises UpdateError for what is none."""
    if not _SITE.fullmatch(name):
        raise UpdateError("names", "expected the name of a site")
    return name


def _key(kind: str, rest: list[str]) -> Any:
    if kind == "start":
        return ()
    site = check_site(rest[0])
    if kind == "said":
        if not rest[1].isascii() or not rest[1].isdigit() or rest[1] != str(int(rest[1])):
            raise UpdateError("names", "record of a round: expected a version")
        return site, int(rest[1])
    return site if len(rest) == 1 else (site, check_site(rest[1]))


def _check(record: Record) -> None:
    """Raise UpdateError where parts of a record contradict each other."""
    told = all(version > 0 and (site, version) in record.said for site, version in record.versions.items())
    counted = all(0 < number <= MAX_SAMPLES for number in record.samples.values())
    pairs = [*record.known, *record.packed]
    named = all({site, other} <= set(record.versions) for site, other in pairs)
    later = any(number > record.version(other) for (_, other), number in record.known.items())
    if not told or not counted or not named or later:
        raise UpdateError("names", "record of a round: its parts contradict each other")
