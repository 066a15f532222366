"""Heads of known anatomy: skin, skull, brain, eyes, nose and lips as solids, of random size and shape.

The shapes are drawn here by hand and share nothing with the average head that the anonymizer fits. A head is
a field of labels, so that the same one can be scanned as CT or MR, in any pose and any orientation of slices
(:mod:`tests.anonymizer.scans`). What is brain and what is face is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from random import Random

    Array = np.ndarray[Any, np.dtype[Any]]

AIR, SOFT, FAT, BONE, BRAIN, CSF, EYE, SINUS = range(8)
GRID_MM: Final = 2.0
_LOW, _HIGH = np.array([-100.0, -135.0, -200.0]), np.array([100.0, 115.0, 110.0])
SKIN_MM: Final = 4.0  # how deep the face's skin and what gives it its shape reach in the ground truth


@dataclass(frozen=True)
class Head:
    """Labels on a grid of the head's own system: millimetres to the left, the back and the head.

    ``landmarks``: places of what a person is recognised by. ``face``: the skin of the face.
    """

    labels: Array
    face: Array
    origin: Array
    landmarks: dict[str, Array]

    @property
    def brain(self) -> Array:
        """Where the brain is."""
        return np.asarray(self.labels == BRAIN)


def drawn(random: Random) -> Head:
    """Draw an adult's head at random."""
    return _Drawing(random).head()


class _Drawing:
    """The solids of one head; lengths in millimetres before the whole is scaled."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._scale = random.uniform(0.92, 1.06) * np.array([random.uniform(0.96, 1.04) for _ in range(3)])
        self._origin = _LOW
        shape = np.ceil((_HIGH - _LOW) / GRID_MM).astype(int)
        places = np.indices(tuple(shape), dtype=np.float32) * GRID_MM + _LOW[:, None, None, None]
        self._x, self._y, self._z = (places[axis] / self._scale[axis] for axis in range(3))
        self._scalp = random.uniform(4.5, 7.0)
        self._skull = random.uniform(5.5, 8.5)
        self._nose = random.uniform(-4, 6)
        self._jaw = random.uniform(-5, 5)
        self._brow = random.uniform(-3, 3)

    def head(self) -> Head:
        """Put the solids together."""
        skin = self._skin()
        cavity = self._cavity()
        depth = ndimage.distance_transform_edt(skin) * GRID_MM
        labels = np.where(skin, SOFT, AIR).astype(np.uint8)
        labels[skin & (depth > 2) & (depth < self._scalp)] = FAT
        labels[self._bones(skin, cavity)] = BONE
        labels[self._spaces() & skin & ~cavity] = SINUS
        labels[self._eyes() & (labels != AIR)] = EYE
        labels[cavity] = CSF
        inner = ndimage.distance_transform_edt(cavity) * GRID_MM
        labels[inner > 2.0] = BRAIN
        labels[(labels == BRAIN) & self._ventricles()] = CSF
        return Head(labels, self._face(skin, depth), self._origin, self._landmarks())

    def _ellipsoid(self, centre: tuple[float, ...], axes: tuple[float, ...], power: float = 2.0) -> Array:
        parts = zip((self._x, self._y, self._z), centre, axes, strict=True)
        return np.asarray(sum(np.abs((at - c) / a) ** power for at, c, a in parts) <= 1)

    def _capsule(self, start: tuple[float, ...], end: tuple[float, ...], radii: tuple[float, float]) -> Array:
        along = np.array(end) - np.array(start)
        place = np.stack([self._x - start[0], self._y - start[1], self._z - start[2]])
        t = np.clip(np.tensordot(along, place, axes=1) / (along @ along), 0, 1)
        distance = np.sqrt(((place - along[:, None, None, None] * t) ** 2).sum(axis=0))
        return np.asarray(distance <= radii[0] + t * (radii[1] - radii[0]))

    def _skin(self) -> Array:
        brow, jaw, nose = self._brow, self._jaw, self._nose
        skin = self._ellipsoid((0, 0, 0), (76, 95, 88))
        skin |= self._ellipsoid((0, -36, -68 + jaw / 2), (60, 54, 72 + jaw), 2.6)
        skin |= self._capsule((-34, -84, -17 + brow), (34, -84, -17 + brow), (8, 8))
        skin |= self._capsule((0, -86, -14 + brow), (0, -86, -22 + brow), (9, 7))
        skin |= self._ellipsoid((0, 30, -130), (56, 58, 110), 3.0)
        skin = ndimage.binary_closing(np.pad(skin, 8, mode="edge"), iterations=4)[8:-8, 8:-8, 8:-8]
        for side in (-1, 1):
            skin &= ~self._ellipsoid((side * 32, -100, -34), (15, 16, 12))
            skin |= self._ellipsoid((side * 32, -75, -34), (12, 12, 12))
            skin |= self._ellipsoid((side * 9, -95, -66), (9, 9, 8))
            skin |= self._ellipsoid((side * 74, 14, -40), (9, 15, 30))
        skin |= self._capsule((0, -90, -28), (0, -103 - nose, -62), (6, 10))
        skin |= self._ellipsoid((0, -90, -93), (25, 9, 5))
        skin |= self._ellipsoid((0, -89, -103), (23, 9, 6))
        skin |= self._ellipsoid((0, -80, -124 - jaw), (20, 17, 16))
        return np.asarray(ndimage.gaussian_filter(skin.astype(np.float32), 1.0) > 0.5)

    def _cavity(self) -> Array:
        thick = self._scalp + self._skull
        inside = self._ellipsoid((0, 0, 0), (76 - thick, 95 - thick, 88 - thick))
        aside = np.clip((np.abs(self._x) - 18) / 12, 0, 1)
        at = [-100, -52, -44, -10, 0, 90]
        middle = np.interp(self._y, at, [-14, -20, -24, -30, -58, -54])
        beside = np.interp(self._y, at, [-12, -20, -40, -44, -56, -50])
        inside &= self._z > middle + aside * (beside - middle)
        stem = self._capsule((0, 12, -40), (0, 22, -170), (13, 7))
        return np.asarray(ndimage.gaussian_filter((inside | stem).astype(np.float32), 1.5) > 0.5)

    def _bones(self, skin: Array, cavity: Array) -> Array:
        outside = ndimage.distance_transform_edt(~cavity) * GRID_MM
        depth = ndimage.distance_transform_edt(skin) * GRID_MM
        bones = (outside > 0) & (outside < self._skull) & (depth > self._scalp * 0.8)
        face = self._ellipsoid((0, -36, -68 + self._jaw / 2), (60, 54, 72 + self._jaw), 2.6)
        bones |= face & (depth > 9) & (depth < 14) & (self._z > -125) & (self._y < -10)
        bones |= self._capsule((0, 45, -75), (0, 40, -200), (16, 16)) & (outside > 0)
        return np.asarray(bones & skin & ~cavity)

    def _spaces(self) -> Array:
        spaces = self._ellipsoid((0, -58, -60), (13, 32, 20))
        spaces |= self._ellipsoid((0, -10, -85), (10, 9, 60))
        for side in (-1, 1):
            spaces |= self._ellipsoid((side * 28, -58, -62), (13, 14, 15))
            spaces |= self._ellipsoid((side * 60, 24, -48), (7, 9, 9))
        return np.asarray(spaces)

    def _eyes(self) -> Array:
        eyes = [self._ellipsoid((side * 32, -74, -34), (11.5, 11.5, 11.5)) for side in (-1, 1)]
        return np.asarray(eyes[0] | eyes[1])

    def _ventricles(self) -> Array:
        both = [self._capsule((side * 12, -25, 8), (side * 16, 30, 12), (5, 6)) for side in (-1, 1)]
        return np.asarray(both[0] | both[1])

    def _face(self, skin: Array, depth: Array) -> Array:
        """The skin from the brows to the chin, between the outer ends of the eyes."""
        front = (self._y < -52) & (np.abs(self._x) < 52) & (self._z < -14) & (self._z > -140 - self._jaw)
        return np.asarray(skin & (depth <= SKIN_MM) & front)

    def _landmarks(self) -> dict[str, Array]:
        found = {
            "nose": (0, -112 - self._nose, -62),
            "left eye": (32, -85, -34),
            "right eye": (-32, -85, -34),
            "upper lip": (0, -97, -93),
            "lower lip": (0, -96, -103),
            "chin": (0, -95, -124 - self._jaw),
        }
        return {name: np.array(place) * self._scale for name, place in found.items()}
