"""What de-identification did to an instance, attribute by attribute, without a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom.datadict import keyword_for_tag

from anonymizer import part10
from anonymizer.elements import Fragments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.elements import Bytes, Element, Item

_GROUP: Final = 0x1_0000


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


def differences(original: Bytes, output: Bytes) -> list[Difference]:
    """Compare an original with its output, items of sequences one by one.

    Raises
    ------
    AnonymizerError
        If one of them cannot be read.
    """
    return sorted(_between(part10.read(original).item, part10.read(output).item, ""))


def _between(before: Item, after: Item, above: str) -> Iterator[Difference]:
    for tag in sorted(before.keys() | after.keys()):
        old, new = before.get(tag), after.get(tag)
        path = f"{above}({tag >> 16:04X},{tag & 0xFFFF:04X})"
        yield Difference(path, _keyword(tag), _change(old, new))
        if old is not None and new is not None:
            yield from _inside(old, new, f"{path}>")


def _inside(old: Element, new: Element, above: str) -> Iterator[Difference]:
    if isinstance(old.value, tuple) and isinstance(new.value, tuple):
        for before, after in zip(old.value, new.value, strict=False):
            yield from _between(before, after, above)


def _keyword(tag: int) -> str:
    if tag // _GROUP & 1:
        return "private"
    return keyword_for_tag(tag) or "unknown"


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
