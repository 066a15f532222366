"""DICOM SEG objects as they come, and as they must not."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom import Dataset as DicomDataset
from pydicom.uid import generate_uid

from inference.volumes import read_volume
from tests.trainer.masked import SEGMENTS, draw, segmentation, series
from trainer.segmentation.masks import MaskError, joined, read_mask, references
from trainer.segmentation.spec import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from pydicom import Dataset

DRAWN = draw(3)
SOURCES = series(DRAWN.image, "P1")
PLANES = read_volume(SOURCES).planes
SEG = segmentation(SOURCES, DRAWN.mask)


def read(ds: Dataset, segments: Sequence[Segment] = SEGMENTS) -> NDArray[np.uint8]:
    return read_mask(ds, PLANES, segments)


def changed(change: Callable[[Any], Any]) -> Dataset:
    ds = deepcopy(SEG)
    change(ds)
    return ds


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_type_of_segmentation_gives_the_mask_it_was_made_of(kind: str) -> None:
    array: NDArray[Any] = DRAWN.mask
    if kind == "FRACTIONAL":
        array = np.stack([DRAWN.mask == number for number in (1, 2)], axis=-1) * 0.9
    assert np.array_equal(read(segmentation(SOURCES, array, kind=kind)), DRAWN.mask)


def test_slices_are_found_whatever_the_order_of_frames_and_instances() -> None:
    mixed = [SOURCES[index] for index in np.random.default_rng(1).permutation(len(SOURCES))]
    ds = deepcopy(SEG)
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    pixels = ds.pixel_array
    turned = segmentation(mixed, DRAWN.mask[[SOURCES.index(one) for one in mixed]])
    assert np.array_equal(read_mask(turned, read_volume(mixed).planes, SEGMENTS), DRAWN.mask)
    ds.PerFrameFunctionalGroupsSequence = groups[::-1]
    ds.PixelData = np.packbits(pixels[::-1].reshape(-1) > 0, bitorder="little").tobytes()
    assert np.array_equal(read(ds), DRAWN.mask)


def test_a_segment_is_found_by_its_code_and_others_are_left_out() -> None:
    only = read(SEG, SEGMENTS[1:])
    assert np.array_equal(only, (DRAWN.mask == 2).astype(np.uint8))
    old = Segment("T-A0100", "SRT", "Brain")
    made = segmentation(SOURCES, (DRAWN.mask == 1).astype(np.uint8), (old,))
    assert read(made, (Segment("12738006", "SCT", "Brain"),)).any()


def test_references_name_series_instances_and_frame_of_reference() -> None:
    found = references(SEG)
    assert found.series_instance_uids == {str(SOURCES[0].SeriesInstanceUID)}
    assert found.sop_instance_uids <= {str(ds.SOPInstanceUID) for ds in SOURCES}
    assert found.frame_of_reference_uid == str(SOURCES[0].FrameOfReferenceUID)


def _first(ds: Dataset) -> Any:
    return ds.PerFrameFunctionalGroupsSequence[0]


def _shift(ds: Dataset) -> None:
    place = _first(ds).PlanePositionSequence[0]
    place.ImagePositionPatient = [value + 0.4 for value in place.ImagePositionPatient]


def _nan(ds: Dataset) -> None:
    _first(ds).PlanePositionSequence[0].ImagePositionPatient = ["nan", 0, 0]


def _spacing(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [2.0, 1.0]


def _turn(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def _stranger(ds: Dataset) -> None:
    source = _first(ds).DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = generate_uid()


def _swap(ds: Dataset) -> None:
    groups = ds.PerFrameFunctionalGroupsSequence
    groups[0].DerivationImageSequence = groups[2].DerivationImageSequence


def _same_code(ds: Dataset) -> None:
    one, other = ds.SegmentSequence
    other.SegmentedPropertyTypeCodeSequence = one.SegmentedPropertyTypeCodeSequence


def _twice(ds: Dataset) -> None:
    groups = ds.PerFrameFunctionalGroupsSequence
    groups[1] = deepcopy(groups[0])


def _overlap(ds: Dataset) -> None:
    ds.PixelData = b"\xff" * len(ds.PixelData)


HOSTILE: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("another frame of reference", "mask.frame_of_reference", lambda ds: _frame(ds, generate_uid())),
    ("no frame of reference", "mask.frame_of_reference", lambda ds: _frame(ds, "")),
    ("another size", "mask.size", lambda ds: _set(ds, "Rows", 23)),
    ("fewer pixels than frames", "mask.frames", lambda ds: _set(ds, "PixelData", ds.PixelData[:40])),
    ("no pixels", "mask.frames", lambda ds: ds.__delattr__("PixelData")),
    ("fewer groups than frames", "mask.frames", lambda ds: ds.PerFrameFunctionalGroupsSequence.pop()),
    ("more frames than groups", "mask.frames", lambda ds: _set(ds, "NumberOfFrames", 10**8)),
    ("no groups", "mask.frames", lambda ds: ds.__delattr__("PerFrameFunctionalGroupsSequence")),
    ("a slice that is not there", "mask.reference", _stranger),
    ("between two slices", "mask.geometry", _shift),
    ("a position that is no number", "mask.geometry", _nan),
    ("another spacing", "mask.geometry", _spacing),
    ("another orientation", "mask.geometry", _turn),
    ("named and lying on different slices", "mask.geometry", _swap),
    ("the same frame twice", "mask.frames", _twice),
    ("segments over one another", "mask.overlap", _overlap),
    ("no segments", "mask.unreadable", lambda ds: ds.__delattr__("SegmentSequence")),
    ("a segment without a code", "mask.unreadable", lambda ds: _codeless(ds.SegmentSequence[0])),
    ("another type", "mask.unreadable", lambda ds: _set(ds, "SegmentationType", "OTHER")),
]  # fmt: skip


def _frame(ds: Dataset, uid: str) -> None:
    ds.FrameOfReferenceUID = uid


def _codeless(segment: Dataset) -> None:
    segment.SegmentedPropertyTypeCodeSequence = []


def _set(ds: Dataset, keyword: str, value: object) -> None:
    setattr(ds, keyword, value)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize(("code", "change"), [one[1:] for one in HOSTILE], ids=[one[0] for one in HOSTILE])
def test_what_does_not_fit_is_refused_by_reason_and_without_a_value(
    code: str, change: Callable[[Any], Any]
) -> None:
    ds = changed(change)
    with pytest.raises(MaskError) as refused:
        read(ds)
    assert refused.value.code == code
    assert "P1" not in str(refused.value)
    assert not any(character.isdigit() for character in str(refused.value))


def test_a_mask_of_other_structures_is_told_from_an_empty_one() -> None:
    with pytest.raises(MaskError) as refused:
        read(SEG, (Segment("10200004", "SCT", "Liver"),))
    assert refused.value.code == "mask.segments"
    assert not read(segmentation(SOURCES, np.zeros_like(DRAWN.mask))).any()


def test_segments_of_one_code_are_one_class() -> None:
    assert np.array_equal(read(changed(_same_code), SEGMENTS[:1]), (DRAWN.mask > 0).astype(np.uint8))


def test_masks_of_one_series_are_joined_where_they_do_not_overlap() -> None:
    parts = [(DRAWN.mask == number) * np.uint8(number) for number in (1, 2)]
    assert np.array_equal(joined(parts), DRAWN.mask)
    with pytest.raises(MaskError, match="the same voxel"):
        joined([DRAWN.mask, parts[1]])


@pytest.mark.parametrize("ds", [SOURCES[0], DicomDataset()], ids=["a picture", "nothing"])
def test_references_of_what_is_no_segmentation_are_refused(ds: Dataset) -> None:
    with pytest.raises(MaskError) as refused:
        references(ds)
    assert refused.value.code == "mask.unreadable"
