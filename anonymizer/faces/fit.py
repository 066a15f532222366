"""The average head turned, moved and stretched onto the outline of a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from anonymizer.errors import StopError
from anonymizer.faces.planes import NOT_REMOVED
from anonymizer.faces.template import FLOOR_MM, Template, template
from anonymizer.faces.volume import VOXEL_MM

if TYPE_CHECKING:
    from anonymizer.faces.outline import Outline
    from anonymizer.faces.volume import Volume
    from anonymizer.frames import Array

_POINTS: Final = 900  # of each skin
_FAR_MM: Final = 15.0
_UNSEEN_MM: Final = 2.0
_SOFT_MM: Final = 3.0
_STARTS: Final = ((0.0, 0.0), (-0.3, 0.0), (0.3, 0.0), (0.0, 0.35), (0.0, -0.35))
_ROUND_MM: Final = 95.0  # of the head below its top, for the start
_TALL_MM: Final = 190.0  # of the head below its top: what the fit looks at
_SCALE_WEIGHT: Final = 400.0


@dataclass(frozen=True)
class Pose:
    """From the template's system to the patient's: ``matrix @ place + offset``."""

    matrix: Array
    offset: Array

    def to_patient(self, places: Array) -> Array:
        """Turn the template's places, shape (3, n)."""
        found: Array = self.matrix @ places + self.offset[:, None]
        return found

    def to_template(self, places: Array) -> Array:
        """Turn the patient's places, shape (3, ...)."""
        shape = (3,) + (1,) * (places.ndim - 1)
        moved = places - self.offset.reshape(shape)
        found: Array = np.tensordot(np.linalg.inv(self.matrix), moved, axes=1)
        return found

    @property
    def stretch(self) -> Array:
        """By which factors the template's axes are stretched."""
        return np.asarray(np.linalg.norm(self.matrix, axis=0))


@dataclass(frozen=True)
class Fit:
    """A pose and how well it fits.

    ``vault_mm``, ``face_mm``: mean distance of the two skins over the vault and over the face, as far as
    the volume reaches. ``vault_seen``, ``face_seen``: which part of them it shows.
    """

    pose: Pose
    vault_mm: float
    face_mm: float
    vault_seen: float
    face_seen: float


def fit(volume: Volume, outline: Outline) -> Fit:
    """Fit the average head.

    Raises
    ------
    StopError
        Code ``face_not_removed`` when nothing in the volume has a skin.
    """
    problem = _Problem(volume, outline, template())
    starts = [problem.start(pitch, yaw) for pitch, yaw in _STARTS]
    rough = [problem.solve(start, 12) for start in starts]
    best = min(rough, key=lambda found: float(found.cost))
    # Rounded, so that the last bits of a processor's arithmetic decide about nothing.
    return problem.judged(_pose(np.round(problem.solve(best.x, 60).x, 4)))


def _pose(numbers: Array) -> Pose:
    turn = Rotation.from_rotvec(numbers[3:6]).as_matrix()
    return Pose(turn * np.exp(numbers[6:9]), numbers[:3])


class _Problem:
    """Both skins, and how far they are apart for a pose."""

    def __init__(self, volume: Volume, outline: Outline, head: Template) -> None:
        self._volume, self._outline, self._head = volume, outline, head
        self._seen = ndimage.binary_erosion(volume.seen, iterations=1, border_value=0).astype(np.float32)
        edge = outline.inside & ndimage.binary_dilation(~outline.inside & volume.seen)
        found = np.argwhere(edge)
        if len(found) < _POINTS:
            raise StopError(NOT_REMOVED, "no outline of a head in the series; expected one")
        self._top = found[:, 2].max() * VOXEL_MM + volume.origin[2]
        places = found.T * VOXEL_MM + volume.origin[:, None]
        places = places[:, places[2] > self._top - _TALL_MM]
        self._places = places[:, :: max(1, places.shape[1] // _POINTS)]
        self._points = head.points[:, :: max(1, head.points.shape[1] // _POINTS)]

    def start(self, pitch: float, yaw: float) -> Array:
        """Return a pose that lays the template's vault over the outline's, turned about two axes."""
        near = self._places[:, self._places[2] > self._top - _ROUND_MM]
        of_head = self._head.points
        vault = of_head[:, of_head[2] > of_head[2].max() - _ROUND_MM]
        turn = Rotation.from_euler("xz", [pitch, yaw])
        turned = turn.as_matrix() @ vault
        offset = (near.min(axis=1) + near.max(axis=1) - turned.min(axis=1) - turned.max(axis=1)) / 2
        offset[2] = self._top - turned[2].max()
        return np.concatenate([offset, turn.as_rotvec(), np.zeros(3)])

    def solve(self, start: Array, steps: int) -> optimize.OptimizeResult:
        low = np.concatenate([start[:3] - 60, np.full(3, -1.2), np.full(3, np.log(0.7))])
        high = np.concatenate([start[:3] + 60, np.full(3, 1.2), np.full(3, np.log(1.3))])
        scale = np.concatenate([np.full(3, 10.0), np.full(3, 0.1), np.full(3, 0.1)])
        return optimize.least_squares(
            self._residuals, start, bounds=(low, high), x_scale=scale,
            loss="soft_l1", f_scale=_SOFT_MM, max_nfev=steps, diff_step=1e-3, xtol=1e-4, ftol=1e-4,
        )  # fmt: skip

    def _residuals(self, numbers: Array) -> Array:
        pose = _pose(numbers)
        apart = self._apart(pose.to_patient(self._points))
        back = pose.to_template(self._places)
        back[2] = np.maximum(back[2], FLOOR_MM)  # the neck goes on as it is
        theirs = np.clip(self._head.at(self._head.skin, back), -_FAR_MM, _FAR_MM)
        uneven = (numbers[6:9] - numbers[6:9].mean()) * _SCALE_WEIGHT
        return np.concatenate([apart, theirs, uneven])

    def _apart(self, places: Array) -> Array:
        index = self._volume.index(places)
        distance = ndimage.map_coordinates(self._outline.distance, index, order=1, mode="nearest")
        seen = ndimage.map_coordinates(self._seen, index, order=1, mode="constant")
        return np.where(seen > 0.5, np.clip(distance, -_FAR_MM, _FAR_MM), _UNSEEN_MM)

    def judged(self, pose: Pose) -> Fit:
        """Measure the fit over the vault and over the face."""
        points = self._head.points
        places = pose.to_patient(points)
        index = self._volume.index(places)
        seen = ndimage.map_coordinates(self._seen, index, order=1, mode="constant") > 0.5
        apart = np.abs(ndimage.map_coordinates(self._outline.distance, index, order=1, mode="nearest"))
        vault = points[2] > 0
        face = (points[2] < -15) & (points[1] < -50)
        return Fit(
            pose,
            vault_mm=_mean(apart[vault & seen]),
            face_mm=_mean(apart[face & seen]),
            vault_seen=float(seen[vault].mean()),
            face_seen=float(seen[face].mean()),
        )


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else np.inf
