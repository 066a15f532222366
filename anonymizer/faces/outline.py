"""The outline of what lies in a volume: what is head and what is air."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage

from anonymizer.errors import StopError
from anonymizer.faces.planes import NOT_REMOVED
from anonymizer.faces.volume import VOXEL_MM

if TYPE_CHECKING:
    from anonymizer.faces.volume import Volume
    from anonymizer.frames import Array

_SKIN_HU: Final = -300.0
_OF_OTSU: Final = (
    0.25,
    0.5,
)  # of the threshold that parts air and tissue: skin is darker than brain in many series
_NOISE: Final = 8.0  # median deviations of air
_THICK: Final = 4  # voxels: half of what a table never is
_REGAINED: Final = 6  # voxels: what a nose reaches beyond that
_SMALLEST_ML: Final = 700.0
_BINS: Final = 256


@dataclass(frozen=True)
class Outline:
    """A head in a volume.

    ``inside``: shape of the volume. ``distance``: millimetres to the skin, negative inside; where the volume
    ends within the head there is no skin.
    """

    inside: Array
    distance: Array


def outline_of(volume: Volume, *, tomography: bool) -> Outline:
    """Find the largest body in a volume.

    Parameters
    ----------
    volume : Volume
        CT in Hounsfield units, or MR.
    tomography : bool
        Whether it is CT.

    Raises
    ------
    StopError
        Code ``face_not_removed`` when there is none.
    """
    smooth = ndimage.gaussian_filter(volume.values, 0.5)
    threshold = _SKIN_HU if tomography else _of_tissue(smooth[volume.seen])
    body = _largest(ndimage.binary_opening((smooth > threshold) & volume.seen, ball(1)))
    if tomography:
        body = _without_table(body)
    body = ndimage.binary_opening(ndimage.binary_closing(body, ball(3)) & volume.seen, ball(2))
    inside = _filled(_largest(body), volume.seen)
    if inside.sum() * VOXEL_MM**3 / 1000 < _SMALLEST_ML:
        raise StopError(NOT_REMOVED, "nothing of a head's size in the series; expected a head")
    depth = ndimage.distance_transform_edt(inside | ~volume.seen)
    height = ndimage.distance_transform_edt(~inside)
    distance = (height - depth + np.where(depth > 0, 0.5, -0.5)) * VOXEL_MM
    return Outline(inside, distance.astype(np.float32))


def ball(radius: int) -> Array:
    """Return a ball of voxels."""
    squares = sum(axis**2 for axis in np.indices((2 * radius + 1,) * 3) - radius)
    return np.asarray(squares <= radius**2 + 0.5)


def _of_tissue(values: Array) -> float:
    """Return the value that parts air and tissue (Otsu's method), lowered to noise for dark skin."""
    top = float(np.percentile(values, 99))
    low = float(np.percentile(values, 1))
    if not top > low:
        raise StopError(NOT_REMOVED, "a series without contrast; expected a head")
    counts, edges = np.histogram(np.clip(values, low, top), _BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    otsu = float(middles[int(np.nanargmax(between))])
    air = values[values < otsu]
    level = float(np.median(air))
    noise = level + _NOISE * float(np.median(np.abs(air - level)))
    return float(np.clip(noise, low + _OF_OTSU[0] * (otsu - low), low + _OF_OTSU[1] * (otsu - low)))


def _largest(mask: Array) -> Array:
    labels, count = ndimage.label(mask)
    if not count:
        raise StopError(NOT_REMOVED, "nothing but air in the series; expected a head")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _without_table(body: Array) -> Array:
    """Cut off what is thinner than a neck and not near it: table, headrest, tubes."""
    solid = np.pad(ndimage.binary_fill_holes(body), _THICK, mode="edge")  # a head goes on where it is cut
    core = _largest(ndimage.binary_opening(solid, ball(_THICK)))[(slice(_THICK, -_THICK),) * 3]
    return _largest(ndimage.binary_dilation(core, ball(1), iterations=_REGAINED, mask=body))


def _filled(body: Array, seen: Array) -> Array:
    """Fill cavities, also those that the volume's ends open: slice by slice along each axis, by majority."""
    votes = np.zeros(body.shape, np.int8)
    for axis in range(3):
        for index in range(body.shape[axis]):
            where = tuple(index if each == axis else slice(None) for each in range(3))
            votes[where] += ndimage.binary_fill_holes(body[where])
    return np.asarray((ndimage.binary_fill_holes(body) | (votes >= 2) | body) & seen)
