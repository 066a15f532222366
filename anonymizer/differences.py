"""What de-identification did to an instance, attribute by attribute: without a value, or side by side."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom.datadict import keyword_for_tag

from anonymizer import part10
from anonymizer.elements import Fragments
from anonymizer.errors import StopError
from anonymizer.text import CHARSET, CHARSET_VRS, Charset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.elements import Bytes, Element, Item

_GROUP: Final = 0x1_0000
_LENGTH: Final = 80  # characters of a value that are shown
_LATIN: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_NUMBERS: Final = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
_FIRST_NUMBERS: Final = 6


@dataclass(frozen=True, order=True)
class Difference:
    """One attribute and what became of it.

    Attributes
    ----------
    path : str
        Tags that lead to it, such as ``(0008,1110)>(0008,1155)``.
    keyword : str
        PS3.6; ``private`` or ``unknown`` where there is none.
    change : str
        ``kept``, ``changed``, ``emptied``, ``removed`` or ``added``.
    """

    path: str
    keyword: str
    change: str


@dataclass(frozen=True)
class Pair:
    """One attribute before and after, as texts of at most 80 characters; empty where it is not there."""

    path: str
    keyword: str
    change: str
    before: str
    after: str


@dataclass(frozen=True)
class _Side:
    """A data set or an item of it, with what is needed to read its values."""

    item: Item
    charset: Charset
    little: bool

    @classmethod
    def of(cls, content: Bytes) -> _Side:
        file = part10.read(content)
        return cls(file.item, _charset(file.item, None), file.syntax.little)

    def inner(self, item: Item) -> _Side:
        return _Side(item, _charset(item, self.charset), self.little)

    def text(self, tag: int) -> str:
        """Say a value as a person would read it."""
        element = self.item.get(tag)
        if element is None:
            return ""
        value, vr = element.value, element.vr
        if isinstance(value, tuple):
            return f"{len(value)} items" if len(value) != 1 else "1 item"
        if isinstance(value, Fragments):
            return f"{len(value.fragments)} fragments"
        if vr in _NUMBERS:
            return _numbers(value, ("<" if self.little else ">") + _NUMBERS[vr])
        if vr not in CHARSET_VRS | _LATIN:
            return f"{len(value)} bytes" if len(value) else ""
        return _shortened(self._decoded(value, vr).strip(" \0"))

    def _decoded(self, value: Bytes, vr: str) -> str:
        if vr in _LATIN:
            return bytes(value).decode("ascii", "replace")
        try:
            return self.charset.decode(value)
        except StopError:
            return bytes(value).decode("ascii", "replace")


def differences(original: Bytes, output: Bytes) -> list[Difference]:
    """Compare an original with its output, items of sequences one by one.

    Raises
    ------
    AnonymizerError
        If one of them cannot be read.
    """
    found = _between(_Side.of(original), _Side.of(output), "")
    return sorted(Difference(path, _keyword(tag), change) for path, tag, change, *_ in found)


def side_by_side(original: Bytes, output: Bytes) -> list[Pair]:
    """Compare as :func:`differences` does, with the values: for people who may see the patient's.

    Raises
    ------
    AnonymizerError
        If one of them cannot be read.
    """
    found = _between(_Side.of(original), _Side.of(output), "")
    return [
        Pair(path, _keyword(tag), change, old.text(tag), new.text(tag))
        for path, tag, change, old, new in found
    ]


def _between(old: _Side, new: _Side, above: str) -> Iterator[tuple[str, int, str, _Side, _Side]]:
    for tag in sorted(old.item.keys() | new.item.keys()):
        before, after = old.item.get(tag), new.item.get(tag)
        path = f"{above}({tag >> 16:04X},{tag & 0xFFFF:04X})"
        yield path, tag, _change(before, after), old, new
        if before is not None and after is not None:
            for first, second in _inside(before, after):
                yield from _between(old.inner(first), new.inner(second), f"{path}>")


def _inside(old: Element, new: Element) -> Iterator[tuple[Item, Item]]:
    if isinstance(old.value, tuple) and isinstance(new.value, tuple):
        yield from zip(old.value, new.value, strict=False)


def _keyword(tag: int) -> str:
    if tag // _GROUP & 1:
        return "private"
    return keyword_for_tag(tag) or "unknown"


def _charset(item: Item, above: Charset | None) -> Charset:
    element = item.get(CHARSET)
    raw = element.value if element is not None and isinstance(element.value, (bytes, memoryview)) else None
    try:
        return Charset.of(raw, above)
    except StopError:  # shown as far as ASCII goes
        return Charset(())


def _numbers(value: Bytes, form: str) -> str:
    size = struct.calcsize(form)
    count = len(value) // size
    first = struct.iter_unpack(form, bytes(value[: min(count, _FIRST_NUMBERS) * size]))
    return _shortened(
        "\\".join(f"{number:g}" for (number,) in first) + ("…" if count > _FIRST_NUMBERS else "")
    )


def _shortened(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= _LENGTH else printable[: _LENGTH - 1] + "…"


def _change(old: Element | None, new: Element | None) -> str:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    if isinstance(old.value, tuple) and isinstance(new.value, tuple):
        return _change_of_size(len(old.value), len(new.value))
    if _raw(old) == _raw(new):
        return "kept"
    return "changed" if _raw(new) else "emptied"


def _change_of_size(before: int, after: int) -> str:
    if before == after:
        return "kept"
    return "changed" if after else "emptied"


def _raw(element: Element) -> tuple[bytes, ...]:
    value = element.value
    if isinstance(value, Fragments):
        return tuple(bytes(fragment) for fragment in value.fragments)
    raw = b"" if isinstance(value, tuple) else bytes(value).strip(b" \0")
    return (raw,) if raw else ()
