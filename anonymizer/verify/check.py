"""The check of one instance: what the original says, looked for in everything that would leave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from pydicom._uid_dict import UID_dictionary

from anonymizer.verify import reader
from anonymizer.verify.identifiers import TEXT_VRS, identifiers, may_identify
from anonymizer.verify.reader import PIXELS, File, Value, VerificationError
from anonymizer.verify.search import DATE_VRS, Piece, Search, Sought

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anonymizer.verify.reader import Bytes, Path

_RLE: Final = "1.2.840.10008.1.2.5"
_STORAGE: Final = ("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.1.2.")
_TEXT_VRS: Final = TEXT_VRS | {"AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"}
_OF_PATIENT: Final = frozenset({0x00100010, 0x00100020, 0x00120063, 0x00120064})
MAX_INFLATED_BYTES: Final = 512 * 1024**2

__all__ = ["Allowed", "Finding", "VerificationError", "check"]


@dataclass(frozen=True)
class Allowed:
    """What may be in the output although the original says it.

    Attributes
    ----------
    tags : frozenset of int
        Attributes whose original values a profile lets stand, in whole or in part: no identifiers.
    written : frozenset of str
        Values that stand for the identity: the pseudonym, and what says how it was removed.
    uids : bool
        UIDs stay (Retain UIDs Option).
    dates : bool
        Dates stay (Retain Longitudinal Temporal Information with Full Dates Option).
    """

    tags: frozenset[int] = frozenset()
    written: frozenset[str] = frozenset()
    uids: bool = False
    dates: bool = False


@dataclass(frozen=True, order=True)
class Finding:
    """A place of the output that holds what identifies, and the kind of it; never the value."""

    where: str
    kind: str


def check(
    original: Bytes,
    output: Bytes,
    allowed: Allowed,
    max_inflated_bytes: int = MAX_INFLATED_BYTES,
    also: Iterable[tuple[int, str, str]] = (),
) -> list[Finding]:
    """Search an output for what its original says of the patient.

    Parameters
    ----------
    original, output : bytes or memoryview
        Part 10 files.
    allowed : Allowed
        What the profile lets stand and what the engine wrote.
    max_inflated_bytes : int
        Most bytes of a deflated data set.
    also : iterable of (tag, vr, text)
        What other instances of the study say of the patient.

    Raises
    ------
    VerificationError
        If one of them cannot be followed.
    """
    said = [value for value in also if value[0] not in allowed.tags]
    wanted = {
        **identifiers(said, _is_removed),
        **_wanted(reader.read(original, max_inflated_bytes), allowed),
    }
    search = Search(list(wanted))
    kinds = list(wanted.values())
    found = {
        Finding(hit.where, kinds[hit.identifier])
        for hit in _hits(reader.read(output, max_inflated_bytes), search, allowed)
    }
    return sorted(found)


def _wanted(file: File, allowed: Allowed) -> dict[str, str]:
    """Return what identifies in the original, with its kind."""
    values = (
        (value.path[-1], value.vr, value.text())
        for value in file.values
        if value.path[-1] not in allowed.tags
        and not (allowed.uids and value.vr == "UI")
        and (may_identify(value.path[-1], value.vr) or (value.vr in TEXT_VRS and _is_removed(value.path[-1])))
    )
    found = identifiers(values, _is_removed)
    return {text: kind for text, kind in found.items() if not _is_registered(text)}


@lru_cache(maxsize=1)
def _removed() -> tuple[frozenset[int], frozenset[int]]:
    content = json.loads((files("anonymizer.verify") / "attributes.json").read_text(encoding="utf-8"))
    return frozenset(int(tag, 16) for tag in content["tags"]), frozenset(content["groups"])


def _is_removed(tag: int) -> bool:
    tags, groups = _removed()
    return tag in tags or tag >> 24 in groups


def _is_registered(text: str) -> bool:
    return text in UID_dictionary or text.startswith(_STORAGE)


def _hits(file: File, search: Search, allowed: Allowed) -> Iterator[Sought]:
    yield from search.in_bytes("what precedes the data set", file.head)
    yield from search.in_bytes("what follows the data set", file.tail)
    values = [value for value in file.values if value.path[-1] not in PIXELS]
    yield from search.in_values(
        [
            Piece(_place(value.path), value.vr, bytes(value.raw), _text(value))
            for value in values
            if not _stands(value, allowed)
        ]
    )
    for value in file.values:
        if value.path[-1] in PIXELS:
            yield from search.in_pixels(_place(value.path), value.raw)
    # The bytes of RLE are pixels, and smooth pixels spell short words.
    look = search.in_bytes if file.transfer_syntax_uid == _RLE else search.in_frame
    for path, fragment in file.fragments:
        yield from look(_place(path), fragment)


def _text(value: Value) -> str | None:
    return value.text() if value.vr in _TEXT_VRS else None


def _stands(value: Value, allowed: Allowed) -> bool:
    if allowed.dates and value.vr in DATE_VRS:
        return True
    if value.path[0] not in _OF_PATIENT:
        return False
    return all(part.strip(" \0") in allowed.written for part in value.text().split("\\"))


def _place(path: Path) -> str:
    return ">".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in path)
