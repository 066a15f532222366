"""An average adult head: its skin, and where its brain and face lie."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from zlib import decompress

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from anonymizer.frames import Array

SKULL_MM: Final = 11.0
"""How deep below the skin the average head's brain begins; fewer millimetres than on average."""
FLOOR_MM: Final = -108.0
"""Below this the average head is made up."""
BROW_MM: Final = 14.0
FRONT_MM: Final = -28.0
CHIN_MM: Final = -150.0
# The base of the brain: height above the template's origin by place between front and back, drawn along the
# average head's skull base; near the middle, and beside it.
_BASE_AT: Final = np.array([-100.0, -82.0, -70.0, -56.0, -46.0, -30.0, -12.0, -5.0, 80.0])
_MIDDLE: Final = np.array([-22.0, -32.0, -40.0, -46.0, -48.0, -50.0, -50.0, -75.0, -75.0])
_BESIDE: Final = np.array([-18.0, -20.0, -23.0, -34.0, -48.0, -50.0, -50.0, -64.0, -64.0])
_MIDDLE_MM, _BESIDE_MM = 18.0, 28.0
_SIDE_MM: Final = 55.0


@dataclass(frozen=True)
class Template:
    """Fields on a grid of the average head's own system (to the left, the back, the head; millimetres).

    ``skin``: distance to the skin, negative inside. ``brain``: distance to the brain, negative inside.
    ``points``: places on the skin, shape (3, n).
    """

    skin: Array
    brain: Array
    origin: Array
    spacing_mm: float
    points: Array

    def at(self, which: Array, places: Array) -> Array:
        """Return values of a field at places of shape (3, ...)."""
        shape = (3,) + (1,) * (places.ndim - 1)
        index = (places - self.origin.reshape(shape)) / self.spacing_mm
        found: Array = ndimage.map_coordinates(which, index, order=1, mode="nearest")
        return found


@lru_cache(maxsize=1)
def template() -> Template:
    """Return the average head of ``anonymizer/tables/head.json``."""
    table = json.loads((files("anonymizer.tables") / "head.json").read_text(encoding="utf-8"))
    content = np.frombuffer(decompress(b64decode(table["values"])), np.int8).reshape(table["shape"])
    skin = content.astype(np.float32) / 2
    origin, spacing = np.array(table["origin_mm"], float), float(table["spacing_mm"])
    places = np.indices(skin.shape) * spacing + origin[:, None, None, None]
    brain = (skin < -SKULL_MM) & (places[2] > _base(places))
    distance = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    return Template(
        skin=skin,
        brain=((distance + np.where(brain, 0.5, -0.5)) * spacing).astype(np.float32),
        origin=origin,
        spacing_mm=spacing,
        points=_surface(skin, places, spacing),
    )


def _base(places: Array) -> Array:
    middle = np.interp(places[1], _BASE_AT, _MIDDLE)
    beside = np.interp(places[1], _BASE_AT, _BESIDE)
    weight = np.clip((np.abs(places[0]) - _MIDDLE_MM) / (_BESIDE_MM - _MIDDLE_MM), 0, 1)
    found: Array = middle + weight * (beside - middle)
    return found


def _surface(skin: Array, places: Array, spacing: float) -> Array:
    """Return points on the skin: voxels beside it, moved onto it along the field's slope."""
    near = (np.abs(skin) < spacing * 0.75) & (places[2] > FLOOR_MM)
    slope = np.asarray(np.gradient(skin, spacing))[:, near]
    points: Array = places[:, near] - slope * skin[near] / np.maximum((slope**2).sum(axis=0), 0.25)
    return points[:, ::3]


def face_of(places: Array, allowed: Array) -> Array:
    """Return by how many millimetres places lie in the face; negative outside.

    Parameters
    ----------
    places : ndarray
        Shape (3, ...), in the template's system.
    allowed : ndarray
        By how many millimetres something else allows it.
    """
    below_brow, in_front, above_throat = BROW_MM - places[2], FRONT_MM - places[1], places[2] - CHIN_MM
    found: Array = np.minimum.reduce([allowed, below_brow, in_front, above_throat])
    return found
