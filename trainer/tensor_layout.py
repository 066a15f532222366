"""The layout of a safetensors file, so that arrays are written and read where they lie, without copies.

Eight bytes of length, a JSON header padded with spaces, then the arrays without gaps. What is written here is
byte for byte what the safetensors library writes; what is read is checked as strictly as there.

References
----------
https://github.com/huggingface/safetensors (Format)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from mmap import mmap

Array = NDArray[Any]
LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
_METADATA: Final = "__metadata__"
# In the order in which the library lays arrays down: the largest alignment first.
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_RANKS: Final = {name: rank for rank, name in enumerate(_DTYPES)}


@dataclass(frozen=True)
class Place:
    """Where an array lies: ``first`` is its offset in the file, in bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    first: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Length in the file."""
        return self.count * self.dtype.itemsize


def pieces(weights: Mapping[str, Array]) -> list[memoryview]:
    """Return a file's content in order: its header, then each array's own memory, copied only if scattered.

    Raises
    ------
    WeightsError
        If an array is of a type, or has a name, that no such file can hold.
    """
    plain: list[tuple[int, str, Array]] = []
    for name, value in weights.items():
        array = np.asarray(value)
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None or not isinstance(name, str) or name == _METADATA:
            raise WeightsError(f"no weights file can hold this ({array.dtype.kind})")
        plain.append((_RANKS[dtype], name, np.asarray(array, _DTYPES[dtype], order="C")))
    plain.sort(key=lambda item: item[:2])
    entries, end = {}, 0
    for _, name, array in plain:
        entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    return [_header(entries), *(array.reshape(-1).view(np.uint8).data for *_, array in plain)]


def _header(entries: Mapping[str, Any]) -> memoryview:
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise WeightsError("no weights file can hold this (name)") from error
    text += b" " * (-len(text) % LENGTH_BYTES)
    return memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text)


def header_bytes(start: bytes) -> int:
    """Return the length of length and header together, from a file's first bytes; raises WeightsError."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise WeightsError("not a weights file (length); expected safetensors")
    return LENGTH_BYTES + length


def places(head: bytes, size_bytes: int) -> dict[str, Place]:
    """Return where each array lies in a file of this size; ``head`` is length and header.

    Raises
    ------
    WeightsError
        Unless every byte belongs to just one array of a known type.
    """
    try:
        entries = json.loads(head[LENGTH_BYTES:].decode(), object_pairs_hook=_once)
        found = {name: _place(entry, len(head)) for name, entry in entries.items() if name != _METADATA}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"not a weights file ({type(error).__name__}); expected safetensors") from error
    end = len(head)
    for place in sorted(found.values(), key=lambda one: (one.first, one.size_bytes)):
        if place.first != end:
            raise WeightsError("not a weights file (gap); expected safetensors")
        end += place.size_bytes
    if end != size_bytes:
        raise WeightsError("not a weights file (size); expected safetensors")
    return found


def view(content: bytes | memoryview | mmap, place: Place) -> Array:
    """Return an array that reads these bytes where they are."""
    return np.frombuffer(content, place.dtype, place.count, place.first).reshape(place.shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _place(entry: Any, start: int) -> Place:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError("expected counts")
    place = Place(_DTYPES[entry["dtype"]], shape, start + first)
    if place.size_bytes != last - first:
        raise ValueError("expected an array's size")
    return place
