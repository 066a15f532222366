"""Where equipment writes text into its pictures: a table that staff extend, and what the header says.

A row of the table names a machine and boxes of pixels, as in ``tables/regions.json``. Sequence of Ultrasound
Regions (PS3.3 C.8.5.5) says where a picture holds data; text of the console lies outside.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from anonymizer import rules
from anonymizer.boxes import Box, outside
from anonymizer.errors import TableError
from anonymizer.text import Charset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anonymizer.elements import Bytes, Item, Syntax

TABLE: Final = "table"
HEADER: Final = "header"
_MODALITY, _MANUFACTURER, _MODEL, _CHARSET = 0x00080060, 0x00080070, 0x00081090, 0x00080005
_ULTRASOUND_REGIONS: Final = 0x00186011
_BOUNDS: Final = (0x00186018, 0x0018601A, 0x0018601C, 0x0018601E)  # X0, Y0, X1, Y1
_TEXTS: Final = ("modality", "manufacturer", "model")
_SIZES: Final = ("rows", "columns")
_FIELDS: Final = frozenset({*_TEXTS, *_SIZES, "boxes", "source"})
_LARGEST: Final = 65535


@dataclass(frozen=True)
class Region:
    """A row of the table. Empty texts and sizes of zero fit every image."""

    modality: str
    manufacturer: str
    model: str
    rows: int
    columns: int
    boxes: tuple[Box, ...]
    source: str

    def fits(self, machine: tuple[str, str, str], rows: int, columns: int) -> bool:
        """Tell whether an image of a machine (modality, manufacturer, model) has this row's boxes."""
        wanted = (self.modality, self.manufacturer, self.model)
        return (
            all(
                not _plain(want) or _plain(want) == _plain(have)
                for want, have in zip(wanted, machine, strict=True)
            )
            and self.rows in {0, rows}
            and self.columns in {0, columns}
        )


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def parse(content: Mapping[str, Any]) -> tuple[Region, ...]:
    """Read a table.

    Parameters
    ----------
    content : mapping
        ``rows``: list of mappings with ``modality``, ``manufacturer``, ``model`` (text; empty fits all),
        ``rows``, ``columns`` (pixels; zero fits all), ``boxes`` (lists of left, top, right, bottom in pixels,
        right and bottom outside) and ``source`` (where this is known from).

    Raises
    ------
    TableError
        If a row lacks a field, has one that is not known, or a box is none.
    """
    rows = content.get("rows")
    if not isinstance(rows, list):
        raise TableError("regions: expected a list of rows")
    return tuple(_row(row, f"regions, row {number}") for number, row in enumerate(rows, 1))


def _row(row: object, where: str) -> Region:
    if not isinstance(row, dict) or set(row) != _FIELDS:
        raise TableError(f"{where}: expected the fields {', '.join(sorted(_FIELDS))}")
    for field in (*_TEXTS, "source"):
        if not isinstance(row[field], str):
            raise TableError(f"{where}, {field}: expected text")
    if not row["source"].strip() or not (row["modality"] or row["manufacturer"] or row["model"]):
        raise TableError(f"{where}: expected a source and something that names the machine")
    for field in _SIZES:
        if type(row[field]) is not int or not 0 <= row[field] <= _LARGEST:
            raise TableError(f"{where}, {field}: expected a number of pixels")
    boxes = row["boxes"]
    if not isinstance(boxes, list) or not boxes:
        raise TableError(f"{where}, boxes: expected at least one")
    return Region(**{**row, "boxes": tuple(_box(box, where) for box in boxes)})


def _box(box: object, where: str) -> Box:
    if isinstance(box, list) and len(box) == 4 and all(type(number) is int for number in box):
        left, top, right, bottom = box
        if 0 <= left < right <= _LARGEST and 0 <= top < bottom <= _LARGEST:
            return Box(left, top, right, bottom, TABLE)
    raise TableError(f"{where}, boxes: expected left, top, right, bottom, with right and bottom outside")


@lru_cache(maxsize=1)
def known() -> tuple[Region, ...]:
    """Return the rows that come with the product."""
    return parse(rules.read_table("regions.json"))


def names_of(original: Item) -> tuple[str, str, str]:
    """Return modality, manufacturer and model of the machine that made an instance."""
    charset = Charset.of(_bytes_of(original, _CHARSET))
    return (
        _text(original, _MODALITY, charset),
        _text(original, _MANUFACTURER, charset),
        _text(original, _MODEL, charset),
    )


def of_machine(original: Item, table: Iterable[Region], rows: int, columns: int) -> list[Box]:
    """Return the boxes that a table has for the machine that made an instance.

    Parameters
    ----------
    original : Item
        The data set as it was received.
    table : iterable of Region
        All rows that fit count.
    rows, columns : int
        Size of the image in pixels.
    """
    machine = names_of(original)
    found = [box for row in table if row.fits(machine, rows, columns) for box in row.boxes]
    clipped = (box.clipped(rows, columns) for box in found)
    return list(dict.fromkeys(box for box in clipped if box is not None))


def _text(item: Item, tag: int, charset: Charset) -> str:
    return charset.decode(_bytes_of(item, tag) or b"").strip(" \0")


def _bytes_of(item: Item, tag: int) -> Bytes | None:
    element = item.get(tag)
    return element.value if element is not None and isinstance(element.value, (bytes, memoryview)) else None


def of_header(original: Item, syntax: Syntax, rows: int, columns: int) -> list[Box] | None:
    """Return boxes that cover all of an image outside its ultrasound regions; None when it names none.

    Regions that lie beyond the image, as those of a picture that was cut or scaled later, are not believed:
    None again. One pixel beyond is: many writers count the end as outside.
    """
    element = original.get(_ULTRASOUND_REGIONS)
    if element is None or not isinstance(element.value, tuple) or not element.value:
        return None
    kept: list[Box] = []
    for item in element.value:
        bounds = [_unsigned_long(item, tag, syntax) for tag in _BOUNDS]
        if any(bound is None for bound in bounds):
            return None
        left, top, right, bottom = (bound or 0 for bound in bounds)
        if left >= right or top >= bottom or right > columns or bottom > rows:
            return None
        kept.append(Box(left, top, right + 1, bottom + 1, HEADER))
    return outside(kept, rows, columns, HEADER)


def _unsigned_long(item: Item, tag: int, syntax: Syntax) -> int | None:
    value = _bytes_of(item, tag)
    if value is None or len(value) != 4:
        return None
    return int(struct.unpack("<L" if syntax.little else ">L", value)[0])
