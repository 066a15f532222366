"""DICOM segmentations: what they are of, and their segments as one array on the slices of that series.

A mask counts where it lies on the very slices: in another grid or frame of reference it is refused, since a
mask that is off by a slice trains a model to be wrong.

References
----------
DICOM PS3.3 C.8.20 (Segmentation), C.7.6.16.2 (Multi-frame Functional Groups), A.51 and A.80.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.sr.coding import Code

from inference.errors import PreprocessingError
from inference.volumes import MAX_VOXELS, TOLERANCE, plane_of, same_directions
from trainer.datasets import UNREADABLE
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from inference.volumes import Plane
    from trainer.segmentation.spec import Segment

SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SOP_CLASSES: Final = frozenset({SEGMENTATION, LABEL_MAP})
MODALITY: Final = "SEG"
_NEAR_MM: Final = 0.01


class MaskError(TrainerError):
    """A mask cannot be used; ``code`` says why, for counting."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class References:
    """What a segmentation says it is of."""

    series_instance_uids: frozenset[str]
    sop_instance_uids: frozenset[str]
    frame_of_reference_uid: str


def references(ds: Dataset) -> References:
    """Read series, instances and frame of reference; the pixels are not needed.

    Raises
    ------
    MaskError
        ``mask.unreadable`` if the object is not built as a segmentation is.
    """
    try:
        if str(ds.get("SOPClassUID", "")) not in SOP_CLASSES:
            raise MaskError("mask.unreadable", "expected an instance of a segmentation storage class")
        series = ds.get("ReferencedSeriesSequence") or []
        instances = {
            str(item.ReferencedSOPInstanceUID)
            for one in series
            for item in one.get("ReferencedInstanceSequence") or []
        }
        for frame in _frames(ds):
            instances.update(_sources(frame))
        return References(
            frozenset(str(one.SeriesInstanceUID) for one in series),
            frozenset(instances),
            str(ds.get("FrameOfReferenceUID", "")),
        )
    except UNREADABLE as error:
        raise MaskError("mask.unreadable", "the references of a segmentation cannot be read") from error


def names_any(ds: Dataset, segments: Sequence[Segment]) -> bool:
    """Whether a segmentation has a segment of one of these codes; the pixels are not needed.

    Raises
    ------
    MaskError
        ``mask.unreadable`` if the object is not built as a segmentation is.
    """
    try:
        return bool(_classes(ds, segments))
    except MaskError:
        return False
    except UNREADABLE as error:
        raise MaskError("mask.unreadable", "the segments of a segmentation cannot be read") from error


def read_mask(ds: Dataset, planes: Sequence[Plane], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """Return the class of every voxel, shape (slices, rows, columns); 0 is none of the task's segments.

    Parameters
    ----------
    ds : Dataset
        A segmentation with its pixels: binary, fractional (from half its maximum on), or a label map.
    planes : sequence of Plane
        The slices of the series, in order. Slices without a frame are empty.
    segments : sequence of Segment
        The task's: class 1 onwards.

    Raises
    ------
    MaskError
        ``mask.frame_of_reference``, ``mask.reference`` (slices that are not there), ``mask.size``,
        ``mask.geometry``, ``mask.frames``, ``mask.segments``, ``mask.overlap`` or ``mask.unreadable``.
    """
    try:
        _check_place(ds, planes)
        classes = _classes(ds, segments)
        slices = [_slice_of(ds, frame, planes) for frame in _frames(ds)]
        numbers = _segment_numbers(ds)
        return _drawn(_pixels(ds), slices, numbers, classes, (len(planes), *planes[0].shape))
    except PreprocessingError as error:
        raise MaskError("mask.geometry", "a frame's position, orientation or spacing is unusable") from error
    except UNREADABLE as error:
        raise MaskError("mask.unreadable", "the segmentation cannot be read") from error


def joined(masks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join masks of different objects of one series; raises MaskError where they claim the same voxel."""
    result = masks[0].copy()
    for mask in masks[1:]:
        if bool(np.any((result > 0) & (mask > 0))):
            raise MaskError("mask.overlap", "two segmentations of one series claim the same voxel")
        result = np.maximum(result, mask)
    return result


def _frames(ds: Dataset) -> list[Dataset]:
    frames = list(ds.get("PerFrameFunctionalGroupsSequence") or [])
    if not frames or len(frames) != int(ds.get("NumberOfFrames") or 1):
        raise MaskError("mask.frames", "expected as many functional groups as NumberOfFrames says")
    return frames


def _shared(ds: Dataset) -> Dataset | None:
    shared = ds.get("SharedFunctionalGroupsSequence")
    return shared[0] if shared else None


def _item(ds: Dataset, frame: Dataset, name: str) -> Dataset | None:
    for group in (frame, _shared(ds)):
        found = None if group is None else group.get(name)
        if found:
            item: Dataset = found[0]
            return item
    return None


def _sources(frame: Dataset) -> Iterator[str]:
    for derivation in frame.get("DerivationImageSequence") or []:
        for source in derivation.get("SourceImageSequence") or []:
            yield str(source.ReferencedSOPInstanceUID)


def _check_place(ds: Dataset, planes: Sequence[Plane]) -> None:
    expected = planes[0].frame_of_reference_uid
    found = str(ds.get("FrameOfReferenceUID", ""))
    if expected != found and (expected or found):
        raise MaskError(
            "mask.frame_of_reference", "the mask is in another frame of reference than the series"
        )
    if (int(ds["Rows"].value), int(ds["Columns"].value)) != planes[0].shape:
        raise MaskError("mask.size", "Rows and Columns of the mask are not those of its series")


def _classes(ds: Dataset, segments: Sequence[Segment]) -> dict[int, int]:
    """Return the task's class of each segment number that the task asks for, by its code.

    Several segments may have one code, as several lesions do.
    """
    wanted = {Code(one.code, one.scheme, one.meaning): number for number, one in enumerate(segments, start=1)}
    found: dict[int, int] = {}
    for item in ds["SegmentSequence"].value:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        code = Code(str(kind.get("CodeValue", "")), str(kind.get("CodingSchemeDesignator", "")), "")
        number = next((number for known, number in wanted.items() if known == code), None)
        if number is not None:
            found[int(item.SegmentNumber)] = number
    if not found:
        raise MaskError("mask.segments", "no segment of the mask has a code of the task")
    return found


def _segment_numbers(ds: Dataset) -> list[int] | None:
    """Return the segment of each frame; None for a label map, whose pixel values are segments."""
    if str(ds.SOPClassUID) == LABEL_MAP:
        return None
    numbers = []
    for frame in _frames(ds):
        item = _item(ds, frame, "SegmentIdentificationSequence")
        if item is None:
            raise MaskError("mask.frames", "a frame does not say which segment it shows")
        numbers.append(int(item.ReferencedSegmentNumber))
    return numbers


def _slice_of(ds: Dataset, frame: Dataset, planes: Sequence[Plane]) -> int:
    """Return the index of the slice on which a frame lies, by its source instance and its position."""
    by_uid = {plane.sop_instance_uid: index for index, plane in enumerate(planes)}
    sources = list(_sources(frame))
    if any(uid not in by_uid for uid in sources):
        raise MaskError("mask.reference", "the mask is of an instance that is not in the series")
    place = _item(ds, frame, "PlanePositionSequence")
    if place is None or not place.get("ImagePositionPatient"):
        if len(sources) == 1:
            return by_uid[sources[0]]
        raise MaskError("mask.geometry", "a frame names neither its position nor its one source instance")
    own = _plane(ds, frame, place, planes[0])
    if len(sources) == 1:
        index = by_uid[sources[0]]
    else:
        index = int(np.argmin([np.linalg.norm(plane.position - own.position) for plane in planes]))
    _check_same(own, planes[index], _reach(planes))
    return index


def _plane(ds: Dataset, frame: Dataset, place: Dataset, like: Plane) -> Plane:
    """Return where a frame lies as an instance would; raises PreprocessingError, AttributeError."""
    own = Dataset()
    orientation = _item(ds, frame, "PlaneOrientationSequence")
    measures = _item(ds, frame, "PixelMeasuresSequence")
    if orientation is None or measures is None:
        raise MaskError("mask.geometry", "the mask does not say its orientation and spacing")
    own.ImagePositionPatient = place.ImagePositionPatient
    own.ImageOrientationPatient = orientation.ImageOrientationPatient
    own.PixelSpacing = measures.PixelSpacing
    own.Rows, own.Columns = like.shape
    return plane_of(own)


def _reach(planes: Sequence[Plane]) -> float:
    """Return how far from a slice a frame may lie to be on it, in mm."""
    heights = np.sort([float(plane.position @ planes[0].normal) for plane in planes])
    gaps = np.diff(heights)
    return max(_NEAR_MM, TOLERANCE * float(gaps.min())) if gaps.size else _NEAR_MM


def _check_same(own: Plane, plane: Plane, reach_mm: float) -> None:
    if (
        float(np.linalg.norm(own.position - plane.position)) > reach_mm
        or not same_directions(own, plane)
        or not np.allclose(own.spacing_mm, plane.spacing_mm, rtol=1e-3)
    ):
        raise MaskError("mask.geometry", "a frame of the mask lies on no slice of the series")


def _pixels(ds: Dataset) -> NDArray[Any]:
    """Return bool or segment numbers, shape (frames, rows, columns)."""
    frames, rows, columns = len(_frames(ds)), int(ds.Rows), int(ds.Columns)
    if frames * rows * columns > MAX_VOXELS:
        raise MaskError("mask.size", f"expected at most {MAX_VOXELS} voxels in a mask")
    try:
        stored = np.asarray(pixel_array(ds, raw=True)).reshape(frames, rows, columns)
    except UNREADABLE as error:
        raise MaskError("mask.frames", "the pixel data is not as large as the frames ask for") from error
    if str(ds.SOPClassUID) == LABEL_MAP:
        return stored
    if str(ds.SegmentationType) == "BINARY":
        return stored > 0
    if str(ds.SegmentationType) != "FRACTIONAL":
        raise MaskError("mask.unreadable", "SegmentationType: expected BINARY or FRACTIONAL")
    return 2 * stored.astype(np.uint32) >= int(ds.MaximumFractionalValue)


def _drawn(
    pixels: NDArray[Any],
    slices: Sequence[int],
    numbers: Sequence[int] | None,
    classes: Mapping[int, int],
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    result = np.zeros(shape, dtype=np.uint8)
    seen: set[tuple[int, int]] = set()
    for position, index in enumerate(slices):
        shown = classes if numbers is None else {numbers[position]: classes.get(numbers[position], 0)}
        for number, kind in shown.items():
            if not kind:
                continue
            if (index, number) in seen:
                raise MaskError("mask.frames", "two frames show the same segment on the same slice")
            seen.add((index, number))
            inside = pixels[position] == number if numbers is None else pixels[position]
            claimed = result[index][inside]
            if bool(np.any((claimed > 0) & (claimed != kind))):
                raise MaskError("mask.overlap", "two segments of the mask claim the same voxel")
            result[index][inside] = kind
    return result
