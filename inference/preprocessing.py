"""From one instance to model input: data in the model's card, one implementation for training and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from inference.errors import PreprocessingError
from inference.resampling import FILTERS, fit, resize

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.pixels import GreyImage

INTENSITY: Final = ("percentile", "voi", "voi_or_percentile")
COLOR_HANDLING: Final = ("refuse", "luminance")
MAX_EDGE: Final = 4096
_WHITE: Final = 65535


@dataclass(frozen=True)
class PreprocessingSpec:
    """How pixels become model input. Pure data: it stands in ``model.json`` and in a task.

    Parameters
    ----------
    rows, columns : int
        Size of the model input; the picture keeps its shape and is centred on black.
    intensity : str
        ``percentile``: from ``lower_percentile`` to ``upper_percentile`` of the pixels that are not padding.
        ``voi``: the instance's first VOI LUT or window, refused when it has none.
        ``voi_or_percentile``: the former when there is one, else the latter.
    color : str
        ``refuse`` or ``luminance``.
    interpolation : str
        ``triangle`` or ``box``, both antialiased.
    mean, standard_deviation : float
        Input is (x - mean) / standard_deviation with x in 0.0 (black) to 1.0 (white).
    channels : int
        Always 1.
    """

    rows: int = 128
    columns: int = 128
    intensity: str = "percentile"
    lower_percentile: float = 0.5
    upper_percentile: float = 99.5
    color: str = "refuse"
    interpolation: str = "triangle"
    mean: float = 0.5
    standard_deviation: float = 0.25
    channels: int = 1

    def __post_init__(self) -> None:
        _check(self)

    @property
    def black(self) -> float:
        """What black, and what is around the picture, is in the model's input."""
        return -self.mean / self.standard_deviation

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> PreprocessingSpec:
        """Read a JSON object; unknown fields and wrong types are refused.

        Raises
        ------
        PreprocessingError
            ``spec``, naming the field.
        """
        if not isinstance(value, Mapping):
            raise PreprocessingError("spec", "preprocessing: expected an object")
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in value if key not in known)
        if unknown:
            raise PreprocessingError("spec", f"preprocessing: unknown field {unknown[0][:40]!r}")
        return cls(**value)


def prepare(ds: Dataset, spec: PreprocessingSpec) -> npt.NDArray[np.float32]:
    """Turn one instance into model input.

    Parameters
    ----------
    ds : Dataset
        A single-frame picture, in any transfer syntax that pydicom decodes.
    spec : PreprocessingSpec
        What the model wants.

    Returns
    -------
    ndarray
        float32, shape (1, rows, columns).

    Raises
    ------
    PreprocessingError
        Naming why the picture is not usable, never a value of it.
    """
    from inference.pixels import read_grey  # noqa: PLC0415 - brings pydicom, which a task alone does not need

    image = read_grey(ds, accept_color=spec.color == "luminance")
    return _finish(shown(ds, image, spec), image.pixel_aspect, spec)


def prepare_pixels(
    pixels: npt.NDArray[Any], spec: PreprocessingSpec, *, inverted: bool = False, pixel_aspect: float = 1.0
) -> npt.NDArray[np.float32]:
    """Turn a bare grey picture into model input; ``voi`` needs an instance and is refused here.

    Parameters
    ----------
    pixels : ndarray
        Shape (rows, columns), any real type.
    spec : PreprocessingSpec
        What the model wants.
    inverted : bool
        Low values are white.
    pixel_aspect : float
        Height of a pixel over its width.

    Returns
    -------
    ndarray
        float32, shape (1, rows, columns).
    """
    from inference.pixels import GreyImage  # noqa: PLC0415 - as above

    if pixels.ndim != 2 or pixels.size == 0:
        raise PreprocessingError("pixel.size", "expected a picture of shape (rows, columns)")
    if spec.intensity == "voi":
        raise PreprocessingError("pixel.voi", "a bare picture has no window; the model wants one")
    image = GreyImage(
        pixels.astype(np.float64), np.ones(pixels.shape, dtype=np.bool_), inverted, pixel_aspect
    )
    return _finish(shown(None, image, spec), pixel_aspect, spec)


def shown(ds: Dataset | None, image: GreyImage, spec: PreprocessingSpec) -> npt.NDArray[np.uint16]:
    """Map grey values to 0 (black) .. 65535 (white); padding is black.

    Parameters
    ----------
    ds : Dataset or None
        Where the window stands.
    image : GreyImage
        In modality units.
    spec : PreprocessingSpec
        Names the mapping.

    Returns
    -------
    ndarray
        uint16, shape of the picture.
    """
    from inference.pixels import apply_voi, has_voi  # noqa: PLC0415 - as above

    if not image.valid.any():
        raise PreprocessingError("pixel.empty", "every pixel is padding")
    if ds is not None and (
        spec.intensity == "voi" or (spec.intensity == "voi_or_percentile" and has_voi(ds))
    ):
        unit = apply_voi(ds, image)
    else:
        unit = _by_percentiles(image, spec.lower_percentile, spec.upper_percentile)
    white = np.floor(unit * _WHITE + 0.5).astype(np.uint16)
    if image.inverted:
        white = (_WHITE - white).astype(np.uint16)
    white[~image.valid] = 0
    return white


def _by_percentiles(image: GreyImage, lower: float, upper: float) -> npt.NDArray[np.float64]:
    inside = image.values[image.valid]
    if not np.isfinite(inside).all():
        raise PreprocessingError("pixel.values", "expected finite numbers")
    low, high = (float(value) for value in np.percentile(inside, (lower, upper)))
    if high <= low:
        low, high = float(inside.min()), float(inside.max())
    if high <= low:
        raise PreprocessingError("pixel.constant", "every pixel has the same value")
    return np.clip((image.values - low) / (high - low), 0.0, 1.0)


def placed(
    white: npt.NDArray[np.uint16], pixel_aspect: float, spec: PreprocessingSpec
) -> npt.NDArray[np.uint16]:
    """Return the picture in the size of the model input, in its shape and centred on 0."""
    top, left, rows, columns = _inside(white.shape[0], white.shape[1], pixel_aspect, spec)
    canvas = np.zeros((spec.rows, spec.columns), dtype=np.uint16)
    canvas[top : top + rows, left : left + columns] = resize(white, rows, columns, spec.interpolation)
    return canvas


def unplaced(
    levels: npt.NDArray[np.uint16], rows: int, columns: int, pixel_aspect: float, spec: PreprocessingSpec
) -> npt.NDArray[np.uint16]:
    """Return what stands in the size of the model input on the picture's own rows and columns, interpolated.

    Parameters
    ----------
    levels : ndarray
        uint16, shape (spec.rows, spec.columns).
    rows, columns : int
        Of the picture, which :func:`placed` put there.
    pixel_aspect : float
        Height of its pixels over their width.
    spec : PreprocessingSpec
        What it was placed by.
    """
    top, left, inner_rows, inner_columns = _inside(rows, columns, pixel_aspect, spec)
    return resize(levels[top : top + inner_rows, left : left + inner_columns], rows, columns)


def _inside(
    rows: int, columns: int, pixel_aspect: float, spec: PreprocessingSpec
) -> tuple[int, int, int, int]:
    """Return where a picture lies in the model input: top, left, rows, columns."""
    high, wide = fit(rows, columns, spec.rows, spec.columns, pixel_aspect)
    return (spec.rows - high) // 2, (spec.columns - wide) // 2, high, wide


def _finish(
    white: npt.NDArray[np.uint16], pixel_aspect: float, spec: PreprocessingSpec
) -> npt.NDArray[np.float32]:
    unit = placed(white, pixel_aspect, spec).astype(np.float64) / _WHITE
    return ((unit - spec.mean) / spec.standard_deviation).astype(np.float32)[np.newaxis]


def _check(spec: PreprocessingSpec) -> None:
    def is_number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))

    def is_edge(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= MAX_EDGE

    lower, upper = spec.lower_percentile, spec.upper_percentile
    rules = (
        ("rows", is_edge(spec.rows), f"8 to {MAX_EDGE}"),
        ("columns", is_edge(spec.columns), f"8 to {MAX_EDGE}"),
        ("intensity", spec.intensity in INTENSITY, " or ".join(INTENSITY)),
        ("lower_percentile", is_number(lower) and 0 <= lower < 50, "0 to below 50"),
        ("upper_percentile", is_number(upper) and 50 < upper <= 100, "above 50 to 100"),
        ("color", spec.color in COLOR_HANDLING, " or ".join(COLOR_HANDLING)),
        ("interpolation", spec.interpolation in FILTERS, " or ".join(FILTERS)),
        ("mean", is_number(spec.mean), "a number"),
        ("standard_deviation", is_number(spec.standard_deviation) and spec.standard_deviation > 0, "above 0"),
        ("channels", spec.channels == 1 and spec.channels is not True, "1"),
    )
    for name, good, expected in rules:
        if not good:
            raise PreprocessingError("spec", f"preprocessing.{name}: expected {expected}")
