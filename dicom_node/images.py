"""Frames of a stored instance, one at a time: as they are stored, decoded, or rendered for the eye.

Of a file only what a frame needs is read, so that memory does not grow with the number of frames.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dicom_node.errors import DICOMNodeError
from dicom_node.transcoding import DECODED, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, UNCOMPRESSED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

    Pixels = np.ndarray[Any, Any]

MAX_PIXELS: Final = 1 << 28  # of one frame that is rendered
MAX_SIDE: Final = 8192
_SMALL: Final = 1 << 16  # longer values stay in the file
_PIXEL_DATA: Final = 0x7FE00010


class ImageError(DICOMNodeError):
    """An instance whose frames cannot be had as asked; the text says why, without a value."""


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2); ``function`` is LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True)
class Look:
    """How a frame is rendered: a window instead of the stored one, and the box of pixels it must fit into."""

    window: Window | None = None
    box: tuple[int, int] | None = None
    kind: str = "image/jpeg"
    quality: int = 90


class Image:
    """The frames of one Part 10 file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ImageError
        When the file cannot be read as an image.
    """

    def __init__(self, path: Path) -> None:
        from pydicom import dcmread  # noqa: PLC0415 - heavy, for the first image

        self._path = path
        with _quiet("the header cannot be read"):
            self._ds = dcmread(path, defer_size=_SMALL)
            self.transfer_syntax_uid = str(self._ds.file_meta.TransferSyntaxUID)
            if _PIXEL_DATA not in self._ds:
                raise ImageError("an instance without pixel data")
            self.frames = max(1, int(self._ds.get("NumberOfFrames") or 1))

    def stored(self, number: int) -> bytes:
        """Return one frame, counted from 1, as it is stored: its samples, or its codestream.

        Raises
        ------
        ImageError
        """
        self._check(number)
        with _quiet("the frame cannot be read"):
            if self.transfer_syntax_uid in UNCOMPRESSED:
                return self._native(number)
            return self._encapsulated(number)

    def decoded(self, number: int) -> bytes:
        """Return one frame as little-endian samples, in the photometric interpretation that it is stored in.

        Raises
        ------
        ImageError
        """
        if self.transfer_syntax_uid in UNCOMPRESSED:
            return self.stored(number)
        pixels = self._pixels(number, raw=True)
        return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()

    def rendered(self, number: int, look: Look) -> bytes:
        """Return one frame as a picture: VOI applied, eight bits, black on black.

        Raises
        ------
        ImageError
        """
        with _quiet("the frame cannot be rendered"):
            if int(self._ds.Rows) * int(self._ds.Columns) > MAX_PIXELS:
                raise ImageError("a frame too large to be rendered")
            return _encoded(_visible(self._ds, self._pixels(number, raw=False), look.window), look)

    def _check(self, number: int) -> None:
        if not 1 <= number <= self.frames:
            raise ImageError(f"expected frames from 1 to {self.frames}")

    def _pixels(self, number: int, *, raw: bool) -> Pixels:
        from pydicom.pixels.utils import pixel_array  # noqa: PLC0415 - as above

        self._check(number)
        if self.transfer_syntax_uid not in UNCOMPRESSED | DECODED:
            raise ImageError("a transfer syntax that is not decoded here")
        with _quiet("the frame cannot be decoded"):
            source = (
                self._ds if self.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else self._path
            )
            return pixel_array(source, index=number - 1, raw=raw)

    def _native(self, number: int) -> bytes:
        """Return the bytes of a frame; those of a big-endian or deflated file by way of its samples."""
        bits = int(self._ds.BitsAllocated)
        samples = int(self._ds.Rows) * int(self._ds.Columns) * int(self._ds.get("SamplesPerPixel") or 1)
        subsampled = str(self._ds.get("PhotometricInterpretation")) == "YBR_FULL_422"
        plain = self.transfer_syntax_uid in {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
        if not plain or bits % 8 or subsampled:
            pixels = self._pixels(number, raw=True)
            if bits == 1:
                return np.packbits(pixels.reshape(-1), bitorder="little").tobytes()
            return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
        size = samples * bits // 8
        element: Any = self._ds.get_item(_PIXEL_DATA, keep_deferred=True)
        with self._path.open("rb") as file:
            if element.value is not None:
                content = bytes(element.value)[(number - 1) * size : number * size]
            else:
                file.seek(element.value_tell + (number - 1) * size)
                content = file.read(size)
        if len(content) != size:
            raise ImageError("pixel data shorter than its frames")
        return content

    def _encapsulated(self, number: int) -> bytes:
        from pydicom.encaps import get_frame  # noqa: PLC0415 - as above

        element: Any = self._ds.get_item(_PIXEL_DATA, keep_deferred=True)
        offsets = None
        if "ExtendedOffsetTable" in self._ds and "ExtendedOffsetTableLengths" in self._ds:
            offsets = (self._ds.ExtendedOffsetTable, self._ds.ExtendedOffsetTableLengths)
        with self._path.open("rb") as file:
            source: Any = file
            if element.value is not None:
                source = BytesIO(element.value)
            else:
                file.seek(element.value_tell)
            return get_frame(source, number - 1, extended_offsets=offsets, number_of_frames=self.frames)


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Let no warning name a value, and turn every failure of the library into one of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImageError, FileNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001 -- bytes as they were received, whatever those are
            raise ImageError(f"{what}: {type(error).__name__}") from None


def _visible(ds: Dataset, pixels: Pixels, window: Window | None) -> Pixels:
    """Return eight-bit grey levels or RGB."""
    from pydicom.pixels.processing import apply_color_lut  # noqa: PLC0415 - as above

    kind = str(ds.get("PhotometricInterpretation") or "")
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, ds)
    if pixels.ndim == 3:
        return _eight_bits(pixels, pixels.dtype.itemsize * 8)
    levels = _windowed(ds, pixels, window)
    return 255 - levels if kind == "MONOCHROME1" else levels


def _eight_bits(pixels: Pixels, bits: int) -> Pixels:
    return (pixels >> (bits - 8)).astype(np.uint8) if bits > 8 else pixels.astype(np.uint8)


def _windowed(ds: Dataset, pixels: Pixels, window: Window | None) -> Pixels:
    from pydicom.dataset import Dataset  # noqa: PLC0415 - as above
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut  # noqa: PLC0415 - as above

    values = apply_modality_lut(pixels, ds)
    how = ds
    if window is not None:
        how = Dataset()
        how.WindowCenter, how.WindowWidth = window.center, window.width
        how.VOILUTFunction = window.function
        for keyword in ("BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
            if keyword in ds:
                setattr(how, keyword, ds[keyword].value)
        how.PhotometricInterpretation = "MONOCHROME2"
    if window is not None or "VOILUTSequence" in ds or _has_value(ds, "WindowWidth"):
        values = apply_voi_lut(values, how)
    low, high = _range(ds, values, how)
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-9))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _range(ds: Dataset, values: Pixels, how: Dataset) -> tuple[float, float]:
    """Return what becomes black and white: the window's own range, else what there is."""
    if not _has_value(how, "WindowWidth") or "VOILUTSequence" in how:
        return float(values.min()), float(values.max())
    slope, intercept = float(ds.get("RescaleSlope") or 1), float(ds.get("RescaleIntercept") or 0)
    bits, signed = int(ds.BitsStored), bool(ds.get("PixelRepresentation"))
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    ends = sorted((least * slope + intercept, most * slope + intercept))
    return ends[0], ends[1]


def _has_value(ds: Dataset, keyword: str) -> bool:
    return keyword in ds and not ds[keyword].is_empty


def _encoded(levels: Pixels, look: Look) -> bytes:
    from PIL import Image as Pillow  # noqa: PLC0415 - as above

    picture = Pillow.fromarray(levels)
    if look.box is not None:
        scale = min(look.box[0] / picture.width, look.box[1] / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Pillow.Resampling.LANCZOS if scale < 1 else Pillow.Resampling.BICUBIC)
    content = BytesIO()
    if look.kind == "image/png":
        picture.save(content, "PNG")
    else:
        picture.save(content, "JPEG", quality=look.quality)
    return content.getvalue()
