"""The directory of a medium (DICOMDIR, PS3.10 section 8, PS3.3 F.3.2.2): which files it refers to."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from anonymizer import part10
from anonymizer.batch.below import open_file_below, open_folder_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anonymizer.elements import Bytes, Item

_RECORDS, _FILE_ID = 0x00041220, 0x00041500
_META_BYTES: Final = 1024
_CLASS: Final = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![.0-9])")  # Media Storage Directory Storage


def is_dicomdir(content: Bytes) -> bool:
    """Tell whether a file's meta information names the Media Storage Directory class."""
    head = bytes(content[:_META_BYTES])
    return head[128:132] == b"DICM" and _CLASS.search(head) is not None


def references(content: Bytes) -> list[tuple[str, ...]]:
    """Return the components of each Referenced File ID (0004,1500), in order, once.

    Raises
    ------
    AnonymizerError
        If the file cannot be read.
    """
    records = part10.read(content).item.get(_RECORDS)
    if records is None or not isinstance(records.value, tuple):
        return []
    found = (_file_id(record) for record in records.value)
    return list(dict.fromkeys(parts for parts in found if parts))


def _file_id(record: Item) -> tuple[str, ...]:
    element = record.get(_FILE_ID)
    if element is None or not isinstance(element.value, (bytes, memoryview)):
        return ()
    text = bytes(element.value).decode("latin-1").strip(" \0")
    return tuple(part.strip(" ") for part in text.split("\\")) if text else ()


def is_hostile(parts: Sequence[str]) -> bool:
    """Tell whether components could lead out of the medium."""
    return any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts)


def locate(root: int, base: Sequence[str], parts: Sequence[str]) -> tuple[str, ...] | None:
    """Return where a referenced file lies below ``root``, or None.

    Media that were copied often have names in lower case; a name that differs by case alone is taken when
    the exact one is missing.
    """
    found = list(base)
    for part in parts:
        try:
            folder = open_folder_below(root, found)
        except OSError:
            return None
        try:
            names = os.listdir(folder)  # noqa: PTH208 - a descriptor is no path
        finally:
            os.close(folder)
        if part not in names:
            alike = sorted(name for name in names if name.casefold() == part.casefold())
            if not alike:
                return None
            part = alike[0]  # noqa: PLW2901 - the name as it is written here
        found.append(part)
    try:
        os.close(open_file_below(root, found)[0])
    except OSError:
        return None
    return tuple(found)
