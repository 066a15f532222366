"""Blacking out boxes and areas of pixel data, in every transfer syntax that can be decoded (PS3.15 E.3.1).

Nothing is decoded unless there is a box. Uncompressed frames are changed in place in a copy. Compressed ones
are decoded, masked and encoded one by one; what was encoded is decoded again and compared, and pixel data
that does not survive that is written uncompressed.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from anonymizer import frames, pixels
from anonymizer.codestreams import clean_jpeg, clean_jpeg2000
from anonymizer.elements import Element
from anonymizer.errors import StopError
from anonymizer.shades import black

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anonymizer.areas import Area
    from anonymizer.boxes import Box
    from anonymizer.elements import Item
    from anonymizer.frames import Array, Layout, PixelData

LOSSLESS: Final = "lossless"
AS_RECEIVED: Final = "as-received"
NATIVE: Final = "native"
RECOMPRESS: Final = (LOSSLESS, AS_RECEIVED, NATIVE)

EXPLICIT: Final = "1.2.840.10008.1.2.1"
_JPEG_LS_LOSSLESS, _JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
_J2K_LOSSLESS, _J2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
_FAMILY: Final = {
    pixels.RLE: pixels.RLE,
    **dict.fromkeys((_JPEG_LS_LOSSLESS, _JPEG_LS_NEAR), _JPEG_LS_LOSSLESS),
    **dict.fromkeys(pixels.JPEG2000, _J2K_LOSSLESS),
}
_MAY_HOLD_LOSSLESS: Final = {_JPEG_LS_NEAR: _JPEG_LS_LOSSLESS, _J2K: _J2K_LOSSLESS}  # PS3.5 A.4.3, A.4.4
LOSSY: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 81, 91, 203))

_LOSSY_COMPRESSION, _PHOTOMETRIC = 0x00282110, 0x00280004
_ICON, _OVERLAYS, _CURVES = 0x00880200, 0x6000, 0x5000
_ALLOCATED: Final = 0x00280100
_EXTREMES: Final = {0x00280106: min, 0x00280107: max, 0x00280108: min, 0x00280109: max}


@dataclass(frozen=True)
class Masked:
    """Pixel data that may leave. ``elements`` are new values by tag; ``boxes`` is what was blacked out."""

    elements: Item
    transfer_syntax_uid: str
    boxes: tuple[Box | Area, ...]


def target_syntax(transfer_syntax_uid: str, recompress: str) -> str:
    """Return the transfer syntax of masked pixel data.

    Parameters
    ----------
    transfer_syntax_uid : str
        As it was received.
    recompress : str
        ``lossless``: the lossless one of the same family (RLE, JPEG-LS, JPEG 2000), else uncompressed.
        ``as-received``: the same where it can hold lossless frames, else as ``lossless``. ``native``:
        uncompressed. What is uncompressed stays as it is encoded.

    Raises
    ------
    ValueError
        If ``recompress`` is none of these.
    """
    if recompress not in RECOMPRESS:
        raise ValueError(f"recompress: expected one of {', '.join(RECOMPRESS)}")
    if transfer_syntax_uid in pixels.NATIVE:
        return transfer_syntax_uid
    if recompress == NATIVE:
        return EXPLICIT
    if recompress == AS_RECEIVED and transfer_syntax_uid in _MAY_HOLD_LOSSLESS:
        return transfer_syntax_uid
    return _FAMILY.get(transfer_syntax_uid, EXPLICIT)


def mask(source: PixelData, found: Item, item: Item, boxes: Iterable[Box | Area], recompress: str) -> Masked:
    """Black out boxes.

    Parameters
    ----------
    source : PixelData
        What ``frames.read`` made of ``found``.
    found : Item
        The cleaned pixel elements, from ``pixels.cleaned``.
    item : Item
        The description, of which changed attributes are returned.
    boxes : iterable of Box or Area
        Parts of boxes outside the image are ignored.
    recompress : str
        See ``target_syntax``.

    Raises
    ------
    StopError
        Code ``pixel_data_not_decodable``, ``pixel_data_too_large``, ``pixel_data_mismatch``,
        ``palette_not_judged`` or ``picture_left_over``.
    ValueError
        If ``recompress`` is unknown.
    """
    uid = target_syntax(source.transfer_syntax_uid, recompress)
    description = source.description
    clipped = (box.clipped(description.rows, description.columns) for box in boxes)
    wanted = tuple(dict.fromkeys(box for box in clipped if box is not None and _in_frames(box, source)))
    if not wanted:
        return Masked(dict(found), source.transfer_syntax_uid, ())
    _refuse_copies(item)
    if source.native:
        content = _native(source, item, wanted)
        changed: Item = {source.tag: Element(source.tag, source.vr, memoryview(content))}
        return Masked(changed | _extremes(source, source.layout, item, wanted), uid, wanted)
    return _compressed(source, item, wanted, uid)


def _in_frames(box: Box | Area, source: PixelData) -> bool:
    return box.frames is None or any(0 <= frame < source.description.frames for frame in box.frames)


def _refuse_copies(item: Item) -> None:
    """Refuse what could still show the text: an icon, an overlay, a curve."""
    if _ICON in item or any((tag >> 16) & 0xFF00 in {_OVERLAYS, _CURVES} for tag in item):
        raise StopError("picture_left_over", "an icon, overlay or curve beside masked pixel data")


def _paint(values: Array, layout: Layout, item: Item, boxes: Sequence[Box | Area], source: PixelData) -> None:
    """Black out boxes of one frame in place."""
    shade = black(values, layout, item, little=source.little)
    halves = source.native and layout.photometric == "YBR_FULL_422"
    for box in boxes:
        box.paint(values, shade, halves=halves)  # halves: two pixels share their colour


def _native(source: PixelData, item: Item, boxes: Sequence[Box | Area]) -> bytearray:
    content = bytearray(source.content if not isinstance(source.content, list) else b"")
    for index in range(source.description.frames):
        of_frame = [box for box in boxes if box.applies_to(index)]
        if not of_frame:
            continue
        values = frames.view(content, index, source)
        _paint(values, source.layout, item, of_frame, source)
        if not np.shares_memory(values, np.frombuffer(content, np.uint8)):
            _put_back(content, index, values, source)
    return content


def _put_back(content: bytearray, index: int, values: Array, source: PixelData) -> None:
    """Write a frame that had to be unpacked, bit by bit or byte by byte."""
    target = np.frombuffer(content, np.uint8)
    if frames.swapped(source):
        target = target[: len(target) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1).copy()
    flat = values.transpose(2, 0, 1) if source.layout.planar == 1 and values.shape[2] == 3 else values
    new = np.ascontiguousarray(flat).reshape(-1)
    start, stop = index * new.size, (index + 1) * new.size
    if source.layout.bits_allocated == 1:
        first, last = start // 8, (stop + 7) // 8
        bits = np.unpackbits(target[first:last], bitorder="little")
        bits[start - first * 8 : stop - first * 8] = new
        target[first:last] = np.packbits(bits, bitorder="little")
    else:
        target[start:stop] = new.view(np.uint8)
    if frames.swapped(source):
        content[:] = target.reshape(-1, 2)[:, ::-1].tobytes()


def _compressed(source: PixelData, item: Item, boxes: Sequence[Box | Area], uid: str) -> Masked:
    layout = source.frame(min(_first_frame(box) for box in boxes))[1]
    if uid != EXPLICIT:
        coded = _encoded(source, item, boxes, uid)
        if coded is not None:
            content, layout = coded
            elements = pixels.encapsulated(content)
            return Masked(elements | _described(source, layout, item, boxes, uid), uid, tuple(boxes))
    value, layout = _decompressed(source, item, boxes, layout)
    vr = "OB" if layout.bits_allocated <= 8 else "OW"
    elements = {source.tag: Element(source.tag, vr, memoryview(value))}
    return Masked(elements | _described(source, layout, item, boxes, EXPLICIT), EXPLICIT, tuple(boxes))


def _first_frame(box: Box | Area) -> int:
    return min((frame for frame in box.frames if frame >= 0), default=0) if box.frames is not None else 0


def _masked_frame(
    source: PixelData, index: int, item: Item, boxes: Sequence[Box | Area]
) -> tuple[Array, Layout]:
    values, layout = source.frame(index)
    values = values if values.flags.writeable else values.copy()
    _paint(values, layout, item, [box for box in boxes if box.applies_to(index)], source)
    return values, layout


def _encoded(
    source: PixelData, item: Item, boxes: Sequence[Box | Area], uid: str
) -> tuple[list[bytes], Layout] | None:
    """Encode all frames, or return None when the encoder does not keep them as they are."""
    codec = _MAY_HOLD_LOSSLESS.get(uid, uid)
    content: list[bytes] = []
    kept: Layout | None = None
    for index in range(source.description.frames):
        values, layout = _masked_frame(source, index, item, boxes)
        codestream = _encode(values, layout, source, codec)
        if codestream is None or (kept is not None and layout != kept):
            return None
        content.append(codestream)
        kept = layout
    return (content, kept) if kept is not None else None


def _encode(values: Array, layout: Layout, source: PixelData, codec: str) -> bytes | None:
    from pydicom.pixels.encoders.base import get_encoder  # noqa: PLC0415 - heavy, for the first masked frame

    options = frames.options(source.description, layout)
    plain = values[:, :, 0] if source.description.samples == 1 else values
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name values
            codestream = bytes(get_encoder(codec).encode(np.ascontiguousarray(plain), **options))
        codestream = _without_comments(codestream, codec)
        again = replace(
            source,
            content=[codestream],
            layout=layout,
            transfer_syntax_uid=codec,
            description=replace(source.description, frames=1),
        )
        back, found = again.frame(0)
    except Exception:  # noqa: BLE001 -- the codecs' own; without them the frame is written uncompressed
        return None
    same = np.array_equal(back, values) and found.photometric == layout.photometric
    return codestream if same else None


def _without_comments(codestream: bytes, codec: str) -> bytes:
    """Leave out what an encoder writes of itself, as what is received is cleaned of it."""
    if codec == _J2K_LOSSLESS:
        return clean_jpeg2000(codestream).content
    return clean_jpeg(codestream).content if codec == _JPEG_LS_LOSSLESS else codestream


def _decompressed(
    source: PixelData, item: Item, boxes: Sequence[Box | Area], first: Layout
) -> tuple[bytearray, Layout]:
    """Return all frames uncompressed, one behind the other, colour by pixel."""
    description = source.description
    frame_bytes = description.rows * description.columns * description.samples * (first.bits_allocated // 8)
    if frame_bytes * description.frames > frames.MAX_PIXEL_DATA_BYTES:
        raise StopError("pixel_data_too_large", "uncompressed pixel data beyond a length of 32 bits")
    content = bytearray()
    for index in range(description.frames):
        values, layout = _masked_frame(source, index, item, boxes)
        if layout != first:
            raise StopError("pixel_data_mismatch", "frames of one instance that decode to different kinds")
        content += np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return content + b"\0" * (len(content) % 2), first


def _described(source: PixelData, layout: Layout, item: Item, boxes: Sequence[Box | Area], uid: str) -> Item:
    """Return the attributes that are true of decoded and written frames."""
    changed: Item = {}
    if layout.photometric != source.layout.photometric:
        changed[_PHOTOMETRIC] = Element(_PHOTOMETRIC, "CS", _padded(layout.photometric))
    if layout.bits_allocated != source.layout.bits_allocated:
        changed[_ALLOCATED] = _short(_ALLOCATED, layout.bits_allocated)
    if layout.high_bit != source.layout.high_bit:
        changed[frames.HIGH_BIT] = _short(frames.HIGH_BIT, layout.high_bit)
    if source.description.samples > 1 and uid != pixels.RLE:
        changed[frames.PLANAR] = _short(frames.PLANAR, 0)
    if source.transfer_syntax_uid in LOSSY and not pixels.text_of(item, _LOSSY_COMPRESSION):
        changed[_LOSSY_COMPRESSION] = Element(_LOSSY_COMPRESSION, "CS", b"01")  # PS3.3 C.7.6.1.1.5
    return changed | _extremes(source, layout, item, boxes)


def _padded(text: str) -> bytes:
    return text.encode("ascii") + b" " * (len(text) % 2)


def _short(tag: int, value: int) -> Element:
    return Element(tag, "US", struct.pack("<H", value))


def _extremes(source: PixelData, layout: Layout, item: Item, boxes: Sequence[Box | Area]) -> Item:
    """Widen the smallest and largest pixel values where black lies beyond them (PS3.3 C.7.6.3)."""
    size = 2 if layout.bits_allocated <= 16 and not layout.floating else 0
    order = struct.Struct(("<" if source.little else ">") + ("h" if layout.signed else "H"))
    old = {
        tag: order.unpack(element.value)[0]
        for tag in _EXTREMES
        if (element := item.get(tag)) is not None
        and isinstance(element.value, (bytes, memoryview))
        and len(element.value) == size
    }
    if not old or source.description.samples > 1:
        return {}
    shades = [
        int(black(source.frame(index)[0], layout, item, little=source.little))
        for index in range(source.description.frames)
        if any(box.applies_to(index) for box in boxes)
    ]
    new = {tag: _EXTREMES[tag](value, *shades) for tag, value in old.items()}
    vr = "SS" if layout.signed else "US"
    return {tag: Element(tag, vr, order.pack(new[tag])) for tag in new if new[tag] != old[tag]}
