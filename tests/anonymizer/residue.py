"""Looking for identifiers with pydicom: a third reader, beside the engine's and the check's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.uid import RLELossless

from anonymizer.verify.identifiers import identifiers, may_identify
from anonymizer.verify.search import Piece, Search, Sought

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})


def identifiers_of(ds: Dataset, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the identifiers of a data set, without UIDs that ``known`` lists (those of the standard)."""
    values = [
        (int(element.tag), element.VR, text_of_value(element.value))
        for element in ds.iterall()
        if may_identify(int(element.tag), element.VR)
    ]
    return tuple(text for text in identifiers(values, lambda _: False) if text not in set(known))


def text_of_value(value: object) -> str:
    """Return a value that pydicom read as one text."""
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list, tuple)):
        return "\\".join(map(str, value))
    return str(value)


def find_residue(source: Dataset | Path, wanted: Sequence[str]) -> list[Sought]:
    """Search an instance for identifiers, in every value of every VR and in the bytes outside the pixel data.

    Those of fewer than six characters are found as whole words of text values only.
    """
    search = Search(wanted)
    if isinstance(source, Dataset):
        return list(search.in_values(list(_values(source))))
    content = source.read_bytes()
    ds = dcmread(source, force=True)
    found = list(search.in_values([*_values(ds), *_values(ds.file_meta)]))
    pixels = ds.get_item(0x7FE00010)
    native = pixels is not None and not ds.file_meta.get("TransferSyntaxUID", "").is_compressed
    size = len(pixels.value or b"") if native and pixels is not None else 0
    outside = content if not size else content.replace(bytes(pixels.value), b"", 1)
    if pixels is not None and not native and ds.file_meta.TransferSyntaxUID != RLELossless:
        found += search.in_frame("(7FE0,0010)", pixels.value or b"")
    return found + list(search.in_bytes("bytes", outside))


def _values(ds: Dataset) -> Iterator[Piece]:
    for element in ds.iterall():
        if element.VR == "SQ" or int(element.tag) in _PIXELS:
            continue
        value = element.value
        if isinstance(value, bytes):
            yield Piece(str(element.tag), element.VR, value, value.decode("latin-1"))
        else:
            text = text_of_value(value)
            yield Piece(str(element.tag), element.VR, text.encode("utf-8"), text)
