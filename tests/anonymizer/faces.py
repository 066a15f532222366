"""What is removed of a head of known anatomy, measured against its ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from anonymizer.faces.planes import Plane
from anonymizer.faces.region import Region, region_of
from anonymizer.faces.volume import VOXEL_MM, Stack
from tests.anonymizer.scans import turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.anonymizer.heads import Head
    from tests.anonymizer.scans import Scan, Slice


@dataclass(frozen=True)
class Removal:
    """``brain``: pixels of the brain that were removed, of ``brain_of``. ``face``, ``of_head``: which part of
    the face's skin and of the whole head was. ``landmarks_left``: what of the face stays."""

    brain: int
    brain_of: int
    face: float
    of_head: float
    landmarks_left: frozenset[str]


def plane_of(each: Slice) -> Plane:
    """Return where a slice lies."""
    ds: Any = each.ds
    directions = np.array([float(x) for x in ds.ImageOrientationPatient])
    rows, columns = (float(x) for x in ds.PixelSpacing)
    return Plane(each.corner, directions[3:] * rows, directions[:3] * columns, int(ds.Rows), int(ds.Columns))


def region(shown: Sequence[Slice], *, tomography: bool) -> Region:
    """Return what is removed of slices."""
    stack = Stack(plane_of(shown[0]))
    for each in shown:
        stack.add(plane_of(each), each.values)
    return region_of(stack.volume(), tomography=tomography)


def removal(head: Head, scan: Scan, shown: Sequence[Slice]) -> Removal:
    """Find the face of slices and compare with the truth."""
    found = region(shown, tomography=scan.contrast == "CT")
    brain = brain_of = face = face_of = of_head = whole = 0
    for each in shown:
        mask = found.of(plane_of(each))
        brain += int((mask & each.brain).sum())
        brain_of += int(each.brain.sum())
        face += int((mask & each.face).sum())
        face_of += int(each.face.sum())
        of_head += int((mask & each.head).sum())
        whole += int(each.head.sum())
    left = {name for name, place in head.landmarks.items() if _at(found, turned(scan, place)) <= 0}
    return Removal(brain, brain_of, face / face_of, of_head / whole, frozenset(left))


def _at(found: Region, place: Any) -> float:
    index = (place - found.origin) / VOXEL_MM
    return float(ndimage.map_coordinates(found.field, index[:, None], order=1, mode="nearest")[0])
