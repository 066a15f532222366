"""Frames of pixel data as arrays of stored values, one at a time (PS3.3 C.7.6.3, PS3.5 section 8)."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anonymizer import pixels
from anonymizer.errors import StopError

if TYPE_CHECKING:
    from anonymizer.elements import Bytes, Element, Item, Syntax

    Array = np.ndarray[Any, np.dtype[Any]]

BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
PLANAR: Final = 0x00280006
MAX_FRAME_BYTES: Final = 256 << 20  # of one decoded frame; a small file may claim more
MAX_PIXEL_DATA_BYTES: Final = 0xFFFFFFFE  # PS3.5 7.1.1: what a length of 32 bits can say
_FLOATS: Final = {pixels.FLOAT_PIXEL_DATA: 4, pixels.DOUBLE_PIXEL_DATA: 8}


@dataclass(frozen=True)
class Layout:
    """What the values of a frame are: the Image Pixel attributes besides its size."""

    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: int
    floating: bool = False


@dataclass(frozen=True)
class PixelData:
    """Pixel data of an instance, cleaned of what is no image, and how to read it."""

    tag: int
    vr: str
    content: Bytes | list[bytes]
    """Native: all frames in one. Compressed: one codestream a frame."""
    description: pixels.Description
    layout: Layout
    transfer_syntax_uid: str
    little: bool

    @property
    def native(self) -> bool:
        """Whether the frames are uncompressed."""
        return self.transfer_syntax_uid in pixels.NATIVE

    def frame(self, index: int) -> tuple[Array, Layout]:
        """Return a frame of shape (rows, columns, samples) and what its values are.

        Native frames are views of the content. Compressed ones are decoded; their colours stay those of the
        codestream, at full resolution. Native YBR_FULL_422 has shape (rows, columns / 2, 4).

        Raises
        ------
        StopError
            Code ``pixel_data_not_decodable``, ``pixel_data_too_large`` or ``pixel_data_mismatch``.
        """
        if isinstance(self.content, list):
            return _decoded(self, self.content[index])
        return view(self.content, index, self), self.layout


def number(item: Item, tag: int, syntax: Syntax, default: int | None = None) -> int:
    """Return an unsigned short.

    Raises
    ------
    StopError
        If it is missing without a default, or no unsigned short.
    """
    element = item.get(tag)
    if element is None and default is not None:
        return default
    if element is None or not isinstance(element.value, (bytes, memoryview)) or len(element.value) != 2:
        raise StopError(
            "pixel_data_mismatch", f"({tag >> 16:04X},{tag & 0xFFFF:04X}): expected one unsigned short"
        )
    return int(struct.unpack("<H" if syntax.little else ">H", element.value)[0])


def read(found: Item, item: Item, transfer_syntax_uid: str, syntax: Syntax) -> PixelData:
    """Return the pixel data among cleaned elements.

    Parameters
    ----------
    found : Item
        What ``pixels.cleaned`` returned.
    item : Item
        The description.
    transfer_syntax_uid, syntax : str, Syntax
        How they are encoded.

    Raises
    ------
    StopError
        Code ``pixel_data_mismatch`` or ``pixel_data_too_large``.
    """
    element = next(found[tag] for tag in sorted(pixels.ALL) if tag in found)
    description = pixels.describe(item, syntax)
    layout = _layout(element, item, description, syntax)
    if description.native_bytes() // description.frames > MAX_FRAME_BYTES:
        raise StopError("pixel_data_too_large", f"a frame of more than {MAX_FRAME_BYTES >> 20} MiB")
    content: Bytes | list[bytes]
    if isinstance(element.value, (bytes, memoryview)):
        content = element.value
    else:
        content = [bytes(fragment) for fragment in getattr(element.value, "fragments", ())]
    return PixelData(
        tag=element.tag,
        vr=element.vr,
        content=content,
        description=description,
        layout=layout,
        transfer_syntax_uid=transfer_syntax_uid,
        little=syntax.little,
    )


def _layout(element: Element, item: Item, description: pixels.Description, syntax: Syntax) -> Layout:
    if element.tag in _FLOATS:
        bits = _FLOATS[element.tag] * 8
        if description.bits_allocated != bits:
            raise StopError("pixel_data_mismatch", "BitsAllocated (0028,0100): not the size of the floats")
        return Layout(description.photometric, bits, bits, bits - 1, signed=True, planar=0, floating=True)
    stored = number(item, BITS_STORED, syntax)
    high = number(item, HIGH_BIT, syntax, stored - 1 if stored else 0)
    if description.bits_allocated == 24 or not 1 <= stored <= high + 1 <= description.bits_allocated:
        raise StopError("pixel_data_mismatch", "BitsAllocated, BitsStored, HighBit: expected them to fit")
    return Layout(
        photometric=description.photometric,
        bits_allocated=description.bits_allocated,
        bits_stored=stored,
        high_bit=high,
        signed=number(item, PIXEL_REPRESENTATION, syntax, 0) == 1,
        planar=number(item, PLANAR, syntax, 0) if description.samples > 1 else 0,
    )


def view(content: Bytes | bytearray, index: int, source: PixelData) -> Array:
    """Return a native frame as an array; writable and without a copy if the content is.

    Frames of one bit, and bytes that lie swapped in big-endian words, are copies.
    """
    description, layout = source.description, source.layout
    shape = (description.rows, description.columns, description.samples)
    if layout.bits_allocated == 1:
        return _bits(content, index, source).reshape(shape)
    dtype = _dtype(layout, little=source.little)
    if description.photometric == "YBR_FULL_422":
        if description.columns % 2 or description.samples != 3:
            raise StopError("pixel_data_mismatch", "YBR_FULL_422: expected three samples, an even width")
        shape = (description.rows, description.columns // 2, 4)
    count = shape[0] * shape[1] * shape[2]
    if swapped(source):
        return _unswapped(content, index, count).view(dtype).reshape(shape)
    offset = index * count * dtype.itemsize
    values = np.frombuffer(content, dtype, count, offset)
    if layout.planar == 1 and description.photometric != "YBR_FULL_422":
        return values.reshape(shape[2], shape[0], shape[1]).transpose(1, 2, 0)
    return values.reshape(shape)


def swapped(source: PixelData) -> bool:
    """Tell whether bytes lie in big-endian words of 16 bits (PS3.5 8.1.2)."""
    return not source.little and source.vr == "OW" and source.layout.bits_allocated <= 8


def _unswapped(content: Bytes | bytearray, index: int, count: int) -> Array:
    start, stop = index * count, (index + 1) * count
    words = np.frombuffer(content, np.uint8)[start - start % 2 : stop + stop % 2]
    padded = words if len(words) % 2 == 0 else np.append(words, np.uint8(0))
    turned: Array = padded.reshape(-1, 2)[:, ::-1].reshape(-1)
    return turned[start % 2 : start % 2 + count].copy()


def _bits(content: Bytes | bytearray, index: int, source: PixelData) -> Array:
    """Unpack a frame of one bit a pixel; frames are packed without a gap (PS3.5 8.1.1)."""
    description = source.description
    count = description.rows * description.columns * description.samples
    first, last = index * count // 8, ((index + 1) * count + 7) // 8
    if swapped(source):
        packed = _unswapped(content, 0, len(content))[first:last]
    else:
        packed = np.frombuffer(content, np.uint8)[first:last]
    start = index * count - first * 8
    return np.unpackbits(packed, bitorder="little")[start : start + count]


def _dtype(layout: Layout, *, little: bool) -> np.dtype[Any]:
    kind = "f" if layout.floating else ("i" if layout.signed else "u")
    return np.dtype(f"{'<' if little else '>'}{kind}{layout.bits_allocated // 8}")


def _decoded(source: PixelData, codestream: bytes) -> tuple[Array, Layout]:
    if source.layout.bits_allocated == 1:
        raise StopError("pixel_data_not_decodable", "compressed pixel data of one bit a pixel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they name values
        try:
            values, found = _decode(source, codestream)
        except Exception as error:  # noqa: BLE001 -- the codecs' own, on bytes from anywhere
            raise StopError(
                "pixel_data_not_decodable", f"a compressed frame cannot be decoded: {type(error).__name__}"
            ) from None
    description, layout = source.description, source.layout
    shape = (description.rows, description.columns, description.samples)
    if values.size != shape[0] * shape[1] * shape[2]:
        raise StopError("pixel_data_mismatch", "a decoded frame is larger or smaller than the image")
    photometric = str(found["photometric_interpretation"])
    return values.reshape(shape), replace(
        layout,
        photometric="YBR_FULL" if photometric == "YBR_FULL_422" else photometric,
        bits_allocated=values.dtype.itemsize * 8,
        high_bit=layout.bits_stored - 1,
        planar=0,
    )


def _decode(source: PixelData, codestream: bytes) -> tuple[Array, Any]:
    from pydicom.encaps import encapsulate  # noqa: PLC0415 - heavy, for the first frame
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - as above

    known = options(source.description, source.layout)
    decoder = get_decoder(source.transfer_syntax_uid)
    found: tuple[Array, Any] = decoder.as_array(
        encapsulate([codestream], has_bot=False), index=0, raw=True, **known
    )
    return found


def options(description: pixels.Description, layout: Layout) -> dict[str, Any]:
    """Return what pydicom's decoders and encoders have to know of one frame."""
    found: dict[str, Any] = {
        "rows": description.rows,
        "columns": description.columns,
        "samples_per_pixel": description.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if description.samples > 1:
        found["planar_configuration"] = layout.planar
    return found
