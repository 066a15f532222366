"""The face as a field over a series' volume: which places are removed, and how far they are from staying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage

from anonymizer.errors import StopError
from anonymizer.faces.fit import fit
from anonymizer.faces.outline import ball, outline_of
from anonymizer.faces.planes import NOT_REMOVED
from anonymizer.faces.template import face_of, template
from anonymizer.faces.volume import VOXEL_MM

if TYPE_CHECKING:
    from anonymizer.faces.fit import Fit
    from anonymizer.faces.outline import Outline
    from anonymizer.faces.planes import Plane
    from anonymizer.faces.volume import Volume
    from anonymizer.frames import Array

MARGIN_MM: Final = 6.0
"""Between the average head's brain and what is removed."""
FOREHEAD_MM: Final = 6.0
"""How deep below the skin the forehead is removed: less than scalp and skull."""
CAVITY_MM: Final = 5.0
"""Between the cavity of the skull, as CT shows it, and what is removed."""
BRIGHT_MM: Final = 4.0
"""Between what is as bright as brain, as MR shows it, and what is removed."""
SKIN_MM: Final = 6.0
"""What lies this near to the skin is never brain."""
SKIN_REACH_MM: Final = 4.0
"""How far into the average brain the skin may lie: foreheads differ."""
_ROOF_MM: Final = -14.0  # height of the orbits' roofs in the template's system
_LARGEST_VAULT_MM, _LARGEST_FACE_MM = 4.5, 8.0
_LEAST_VAULT, _LEAST_FACE = 0.75, 0.35
_LEAST_STRETCH, _MOST_STRETCH, _MOST_UNEVEN = 0.78, 1.2, 1.17
_BONE_HU, _BRAIN_HU = 180.0, (-15.0, 110.0)
_OF_BRAIN: Final = 0.45
_DEEP_MM: Final = 15.0
_CAVITY_REACH_MM, _BRIGHT_REACH_MM = 10.0, 7.0


@dataclass(frozen=True)
class Region:
    """What is removed of a series: places where ``field``, in millimetres, is above zero."""

    field: Array
    origin: Array
    fit: Fit

    def of(self, plane: Plane) -> Array:
        """Return the pixels of a plane that are removed: bool, shape (rows, columns)."""
        index = (plane.places() - self.origin[:, None, None]) / VOXEL_MM
        found: Array = ndimage.map_coordinates(self.field, index, order=1, mode="nearest") > 0
        return found


def region_of(volume: Volume, *, tomography: bool) -> Region:
    """Find the face in a volume.

    Parameters
    ----------
    volume : Volume
        CT in Hounsfield units, or MR.
    tomography : bool
        Whether it is CT.

    Raises
    ------
    StopError
        Code ``face_not_removed`` when the volume does not show a head and its face well enough.
    """
    outline = outline_of(volume, tomography=tomography)
    found = fit(volume, outline)
    _refuse_doubtful(found)
    places = np.indices(volume.values.shape, dtype=np.float32) * np.float32(VOXEL_MM)
    places += volume.origin.astype(np.float32)[:, None, None, None]
    head = template()
    own = found.pose.to_template(places)
    brain = head.at(head.brain, own)
    field = face_of(own, brain - MARGIN_MM)
    loosened = np.maximum(0, _ROOF_MM - own[2]) * 2
    field = np.minimum(field, outline.distance + FOREHEAD_MM + loosened)
    shell = np.minimum(outline.distance + SKIN_MM, brain + SKIN_REACH_MM)
    field = np.maximum(field, face_of(own, shell))
    within = _within_skull(volume, outline, brain, tomography=tomography)
    field = np.minimum(field, within - (CAVITY_MM if tomography else BRIGHT_MM))
    return Region(field.astype(np.float32), volume.origin, found)


def _refuse_doubtful(found: Fit) -> None:
    if found.vault_seen < _LEAST_VAULT or found.face_seen < _LEAST_FACE:
        raise StopError(NOT_REMOVED, "the series shows a part of a head alone; expected vault and face")
    stretch = found.pose.stretch
    if found.vault_mm > _LARGEST_VAULT_MM or found.face_mm > _LARGEST_FACE_MM:
        raise StopError(NOT_REMOVED, "what the series shows does not have the form of a head with a face")
    uneven = stretch.max() > _MOST_UNEVEN * stretch.min()
    if stretch.min() < _LEAST_STRETCH or stretch.max() > _MOST_STRETCH or uneven:
        raise StopError(NOT_REMOVED, "what the series shows does not have the size of a head")


def _within_skull(volume: Volume, outline: Outline, brain: Array, *, tomography: bool) -> Array:
    """Return the distance to what lies within the skull as the series shows it, in millimetres.

    It is soft tissue (CT), or as bright as brain (MR), near the average brain, in one piece with most of it
    after thin bridges are cut. It guards a brain that is larger than the average one.
    """
    values = ndimage.gaussian_filter(volume.values, 0.5)
    if tomography:
        bone = ndimage.binary_closing(values > _BONE_HU, ball(2))
        tissue = (values > _BRAIN_HU[0]) & (values < _BRAIN_HU[1]) & ~bone
    else:
        tissue = values > _OF_BRAIN * float(np.median(values[brain < -_DEEP_MM]))
    reach = _CAVITY_REACH_MM if tomography else _BRIGHT_REACH_MM
    near = tissue & outline.inside & (brain < reach) & (outline.distance < -SKIN_MM)
    labels, count = ndimage.label(ndimage.binary_opening(near, ball(2)))
    sizes = np.bincount(labels[brain < 0], minlength=count + 1)
    sizes[0] = 0
    if not sizes.any():
        raise StopError(NOT_REMOVED, "a head without a brain in its skull; expected one")
    piece = ndimage.binary_dilation(labels == sizes.argmax(), ball(2), mask=near)
    found: Array = ndimage.distance_transform_edt(~piece) * VOXEL_MM
    return found
