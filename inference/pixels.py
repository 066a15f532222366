"""From the pixel data of one instance to grey values as a viewer would show them.

References
----------
DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.5.1.1.2 (Pixel Padding Value).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.utils import pixel_array

from inference.errors import PreprocessingError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS: Final = 40_000_000  # a mammogram has 30 million; each costs some 40 bytes on the way
MONOCHROME: Final = ("MONOCHROME1", "MONOCHROME2")
COLOR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# What pydicom and the codecs behind it raise on pixel data that is not what the header says.
_DECODE_ERRORS: Final = (
    AttributeError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, RuntimeError,
    OverflowError, OSError, EOFError, MemoryError, struct.error, BytesLengthException,
)  # fmt: skip


@dataclass(frozen=True)
class GreyImage:
    """One picture in modality units.

    ``values``: float64, shape (rows, columns), after the modality transformation.
    ``valid``: bool, same shape; False where the picture was padded.
    ``inverted``: low values are shown white (MONOCHROME1).
    ``pixel_aspect``: height of a pixel over its width.
    """

    values: npt.NDArray[np.float64]
    valid: npt.NDArray[np.bool_]
    inverted: bool
    pixel_aspect: float


def read_grey(ds: Dataset, *, accept_color: bool) -> GreyImage:
    """Decode one single-frame picture and apply the modality transformation.

    Parameters
    ----------
    ds : Dataset
        An instance with pixel data in any transfer syntax that pydicom decodes.
    accept_color : bool
        Turn colour into luminance instead of refusing it.

    Raises
    ------
    PreprocessingError
        With the codes ``pixel.missing``, ``pixel.header``, ``pixel.size``, ``pixel.frames``,
        ``pixel.photometric``, ``pixel.decode`` or ``pixel.modality_lut``.
    """
    photometric = _check_header(ds, accept_color=accept_color)
    stored = _decode(ds)
    if photometric in COLOR:
        values = _luminance(stored, photometric)
        return GreyImage(
            values, np.ones(values.shape, dtype=np.bool_), inverted=False, pixel_aspect=pixel_aspect(ds)
        )
    if stored.ndim != 2:
        raise PreprocessingError("pixel.decode", "decoded pixel data is not one grey picture")
    valid = ~_padding(ds, stored)
    try:
        values = np.asarray(apply_modality_lut(stored, ds), dtype=np.float64)
    except _DECODE_ERRORS as error:
        raise PreprocessingError(
            "pixel.modality_lut", f"the modality LUT cannot be applied ({type(error).__name__})"
        ) from error
    if values.shape != stored.shape or not np.isfinite(values).all():
        raise PreprocessingError(
            "pixel.modality_lut", "the modality LUT gives values that are not finite numbers"
        )
    return GreyImage(values, valid, inverted=photometric == "MONOCHROME1", pixel_aspect=pixel_aspect(ds))


def has_voi(ds: Dataset) -> bool:
    """Whether the instance names a window or a VOI LUT."""
    return bool(ds.get("VOILUTSequence")) or (
        ds.get("WindowCenter") is not None and ds.get("WindowWidth") is not None
    )


def apply_voi(ds: Dataset, image: GreyImage) -> npt.NDArray[np.float64]:
    """Map modality units to 0.0 .. 1.0 with the first window or VOI LUT of the instance.

    Raises
    ------
    PreprocessingError
        ``pixel.voi`` if there is none, or if it is not usable.
    """
    if not has_voi(ds):
        raise PreprocessingError("pixel.voi", "neither a window nor a VOI LUT; the model wants one")
    values = image.values
    try:
        if ds.get("VOILUTSequence"):
            item = ds.VOILUTSequence[0]
            shown = np.asarray(apply_voi_lut(np.rint(values).astype(np.int64), ds, index=0), dtype=np.float64)
            low, high = 0.0, float(2 ** int(item.LUTDescriptor[2]) - 1)
        else:
            shown, low, high = _window(ds, values)
    except _DECODE_ERRORS as error:
        raise PreprocessingError(
            "pixel.voi", f"window or VOI LUT cannot be applied ({type(error).__name__})"
        ) from error
    if not np.isfinite(shown).all() or high <= low:
        raise PreprocessingError("pixel.voi", "window or VOI LUT gives values that are not finite numbers")
    return np.clip((shown - low) / (high - low), 0.0, 1.0)


def _window(ds: Dataset, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float, float]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, mapped to 0 .. 1."""
    centre, width = _first(ds.WindowCenter), _first(ds.WindowWidth)
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID" and width > 0:
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0))), 0.0, 1.0
    if function == "LINEAR_EXACT" and width > 0:
        return values, centre - width / 2, centre + width / 2
    if function == "LINEAR" and width >= 1:
        low = centre - 0.5 - (width - 1) / 2
        return values, low, low + max(width - 1, 1e-9)
    raise PreprocessingError("pixel.voi", "unknown VOI LUT function or a window width out of range")


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, MultiValue) else value)


def _check_header(ds: Dataset, *, accept_color: bool) -> str:
    if "PixelData" not in ds:
        raise PreprocessingError("pixel.missing", "no PixelData; expected a picture")
    try:
        rows, columns = int(ds["Rows"].value), int(ds["Columns"].value)
        frames = int(ds.get("NumberOfFrames") or 1)
        photometric = str(ds["PhotometricInterpretation"].value)
        samples = int(ds["SamplesPerPixel"].value)
        int(ds["BitsAllocated"].value)
    except (KeyError, TypeError, ValueError) as error:
        raise PreprocessingError(
            "pixel.header", "an Image Pixel attribute is missing or not a number"
        ) from error
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise PreprocessingError("pixel.size", f"expected 1 to {MAX_PIXELS} pixels")
    if frames != 1:
        raise PreprocessingError("pixel.frames", "expected a single frame")
    if photometric in MONOCHROME and samples == 1:
        return photometric
    if photometric in COLOR and samples == 3:
        if accept_color:
            return photometric
        raise PreprocessingError(
            "pixel.photometric", "a colour picture; the model wants MONOCHROME1 or MONOCHROME2"
        )
    raise PreprocessingError(
        "pixel.photometric", "PhotometricInterpretation and SamplesPerPixel are not supported together"
    )


def _decode(ds: Dataset) -> npt.NDArray[Any]:
    try:
        stored = np.asarray(pixel_array(ds, raw=True))
    except _DECODE_ERRORS as error:
        raise PreprocessingError(
            "pixel.decode", f"pixel data cannot be decoded ({type(error).__name__})"
        ) from error
    if stored.shape[:2] != (int(ds.Rows), int(ds.Columns)):
        raise PreprocessingError("pixel.decode", "decoded pixel data is not as large as Rows and Columns say")
    return stored


def _luminance(stored: npt.NDArray[Any], photometric: str) -> npt.NDArray[np.float64]:
    """ITU-R BT.601 luma."""
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise PreprocessingError("pixel.decode", "decoded pixel data is not one colour picture")
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        if stored.dtype != np.uint8:
            raise PreprocessingError("pixel.photometric", "YBR with other than 8 bits is not supported")
        stored = convert_color_space(stored, "YBR_FULL", "RGB")
    rgb = stored.astype(np.float64)
    return 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]


def _padding(ds: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Pixels whose stored value is padding; compared before any LUT, as the standard says."""
    try:
        first = ds.get("PixelPaddingValue")
        if first is None:
            return np.zeros(stored.shape, dtype=np.bool_)
        limit = ds.get("PixelPaddingRangeLimit")
        a, b = int(first), int(first if limit is None else limit)
    except (TypeError, ValueError) as error:
        raise PreprocessingError("pixel.header", "Pixel Padding Value is not a number") from error
    return np.asarray((stored >= min(a, b)) & (stored <= max(a, b)), dtype=np.bool_)


def pixel_aspect(ds: Dataset) -> float:
    """Height of a pixel over its width; 1.0 when the file says nothing usable (PS3.3 C.7.6.3.1.7)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        value = ds.get(keyword)
        try:
            vertical, horizontal = float(value[0]), float(value[1])
        except (TypeError, ValueError, IndexError):
            continue
        if vertical > 0 and horizontal > 0 and 0.1 <= vertical / horizontal <= 10:
            return vertical / horizontal
    return 1.0
