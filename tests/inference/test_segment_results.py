"""What a segmenting model marks, on the voxels of the series that it came from, as DICOM results."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pytest
from highdicom._standard_utils import get_module_usage, get_sop_class_iod_map
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    CTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from inference.errors import ResultError
from inference.frames_of_reference import NEEDING
from inference.results.colors import color_of
from inference.results.context import Predecessor
from inference.results.marked_picture import most_marked, render_marked
from inference.results.picture import HEADER, as_seen
from inference.segments import VolumeSpec
from inference.study import build_segment_results, is_own_result, read_instance, segment_study
from inference.volumes import read_volume
from tests.inference.material import make_instance
from tests.inference.segment_material import (
    DRAWN,
    GREY,
    SERIES,
    WHITE,
    context_of,
    made,
    make_segment_card,
    pictures_card,
)
from tests.trainer import masked
from trainer.segmentation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydicom import Dataset

    from inference.session import ModelSession
    from tests.inference.conftest import IODChecker


def test_the_segmentation_says_what_of_what_by_which_model(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting()
    sources = masked.series(DRAWN.image, "P-7")
    context, found = made(session, tmp_path, sources)
    (ds,) = found["seg"]
    assert (ds.SOPClassUID, ds.SegmentationType, ds.Modality) == (SegmentationStorage, "BINARY", "SEG")
    assert (ds.PatientID, ds.StudyInstanceUID) == ("P-7", sources[0].StudyInstanceUID)
    assert ds.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert ds.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert "RESEARCH USE ONLY" in ds.SeriesDescription
    assert "RESEARCH USE ONLY" in ds.ContentDescription
    assert is_own_result(ds)
    for item, segment in zip(ds.SegmentSequence, (GREY, WHITE), strict=True):
        assert (item.SegmentNumber, item.SegmentLabel) == (segment.number, segment.label)
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        kind, category = (
            item.SegmentedPropertyTypeCodeSequence[0],
            item.SegmentedPropertyCategoryCodeSequence[0],
        )
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (segment.code, segment.scheme)
        assert category.CodeValue == segment.category.code
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("hippocampus", "1.0")
        assert context.package_sha256 in algorithm.AlgorithmParameters
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert named == {source.SOPInstanceUID for source in sources}
    for frame in ds.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        assert derivation.SourceImageSequence[0].ReferencedSOPInstanceUID in named


def test_the_report_measures_each_segment_and_refers_to_it(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting()
    sources = masked.series(DRAWN.image, "P-7", spacing_mm=(1.0, 0.6, 0.8))
    context, found = made(session, tmp_path, sources)
    (report,), (segmentation,) = found["sr"], found["seg"]
    assert report.SOPClassUID == ComprehensiveSRStorage
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = hd.sr.ComprehensiveSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    assert [group.finding_type.value for group in groups] == [GREY.code, WHITE.code]
    read = read_mask(segmentation, read_volume(sources).planes, masked.SEGMENTS)
    for number, group in enumerate(groups, start=1):
        (measured,) = group.get_measurements(name=hd.sr.CodedConcept("118565006", "SCT", "Volume"))
        assert (measured.unit.value, measured.unit.scheme_designator) == ("mL", "UCUM")
        assert measured.value == pytest.approx((read == number).sum() * 1.0 * 0.6 * 0.8 / 1000, abs=5e-4)
        assert measured.value > 0.05
        assert group.tracking_uid == segmentation.SegmentSequence[number - 1].TrackingUID
        referenced = group.referenced_segment
        assert referenced.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert list(referenced.referenced_segment_numbers) == [number]
    texts = report.to_json()
    assert f"package_sha256={context.package_sha256}" in texts
    assert "RESEARCH USE ONLY" in texts
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {segmentation.SOPInstanceUID, *(source.SOPInstanceUID for source in sources)}


def test_a_retry_makes_the_very_same_instances(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting()
    paths = masked.save(tmp_path / "study", masked.series(DRAWN.image, "P-7"))
    contexts = [context_of(session, segment_study(session, paths, lambda: None)) for _ in range(2)]
    contents = []
    for context in contexts:
        written = []
        for _, ds in build_segment_results(context):
            ds.save_as(tmp_path / "r.dcm", enforce_file_format=True)
            written.append((tmp_path / "r.dcm").read_bytes())
        contents.append(written)
    assert contents[0] == contents[1]
    again = build_segment_results(replace(contexts[0], revision_id="1" * 32))
    first = build_segment_results(contexts[0])
    assert {ds.SOPInstanceUID for _, ds in again}.isdisjoint(ds.SOPInstanceUID for _, ds in first)


def test_of_two_series_each_has_its_segmentation_and_one_report_names_both(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    first, second = masked.series(DRAWN.image, "P-7"), masked.series(masked.draw(4).image, "P-7")
    for ds in second:
        ds.StudyInstanceUID = first[0].StudyInstanceUID
    _, found = made(segmenting(), tmp_path, [*first, *second])
    assert len(found["seg"]) == 2
    assert len({ds.SeriesInstanceUID for ds in found["seg"]}) == 2
    assert len({ds.SOPInstanceUID for ds in found["seg"]}) == 2
    (report,) = found["sr"]
    groups = hd.sr.ComprehensiveSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 4
    assert len({group.tracking_uid for group in groups}) == 4


def test_where_nothing_is_marked_the_segmentation_is_empty_and_small_and_the_report_says_zero(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    context, found = made(segmenting(start=(50.0, 0.0, 0.0)), tmp_path, masked.series(DRAWN.image, "P-7"))
    assert not context.marked[0].labels.any()
    (ds,) = found["seg"]
    assert ds.NumberOfFrames == 2
    assert not ds.pixel_array.any()
    groups = hd.sr.ComprehensiveSR.from_dataset(
        found["sr"][0]
    ).content.get_volumetric_roi_measurement_groups()
    assert [group.get_measurements()[0].value for group in groups] == [0, 0]


def _drop(instances: list[Dataset]) -> None:
    del instances[5]


def _repeat(instances: list[Dataset]) -> None:
    for ds in masked.series(DRAWN.image, "P-7"):
        ds.SeriesInstanceUID, ds.StudyInstanceUID = (
            instances[0].SeriesInstanceUID,
            instances[0].StudyInstanceUID,
        )
        ds.FrameOfReferenceUID = instances[0].FrameOfReferenceUID
        instances.append(ds)


def _unplaced(instances: list[Dataset]) -> None:
    for ds in instances:
        del ds.FrameOfReferenceUID


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_drop, "volume.spacing"),
        (_repeat, "volume.spacing"),
        (lambda instances: instances.__delitem__(slice(1, None)), "volume.slices"),
        (_unplaced, "volume.frame_of_reference"),
        (lambda instances: setattr(instances[2], "PixelData", b"\0\0"), "pixel.decode"),
        (lambda instances: setattr(instances[2], "NumberOfFrames", 3), "pixel.frames"),
    ],
    ids=["a gap", "two volumes", "one slice", "no frame of reference", "cut off", "multi-frame"],
)
def test_a_series_that_is_no_volume_is_told_with_its_reason_and_the_other_is_marked(
    change: Callable[[list[Dataset]], None],
    code: str,
    tmp_path: Path,
    segmenting: Callable[..., ModelSession],
) -> None:
    spoilt, good = masked.series(DRAWN.image, "P-7"), masked.series(DRAWN.image, "P-7")
    change(spoilt)
    session = segmenting()
    paths = masked.save(tmp_path / "spoilt", spoilt)
    outcome = segment_study(session, paths, lambda: None)
    assert outcome.marked == ()
    assert [reason for _, reason in outcome.unreadable] == [code]
    with pytest.raises(ResultError, match=r"result\.empty"):
        context_of(session, outcome)
    both = segment_study(session, [*paths, *masked.save(tmp_path / "good", good)], lambda: None)
    assert [one.series_instance_uid for one in both.marked] == [good[0].SeriesInstanceUID]
    assert [reason for _, reason in both.unreadable] == [code]


def test_instances_of_different_patients_make_no_result(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    sources = masked.series(DRAWN.image, "P-7")
    sources[3].PatientID = "P-8"
    session = segmenting()
    outcome = segment_study(session, masked.save(tmp_path, sources), lambda: None)
    with pytest.raises(ResultError, match=r"identity\.mismatch") as refused:
        build_segment_results(context_of(session, outcome))
    assert "P-8" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"FrameOfReferenceUID": ""}, "volume.frame_of_reference"),
        ({"FrameOfReferenceUID": None, "ImagePositionPatient": None}, "volume.frame_of_reference"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "volume.plane"),
        ({"PixelData": b"\0\0"}, "pixel.decode"),
    ],
)
def test_a_picture_that_cannot_be_placed_or_read_is_told_and_the_others_are_marked(
    changes: dict[str, Any], code: str, tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    sources = masked.series(DRAWN.image, "P-7")
    for keyword, value in changes.items():
        if value is None:
            delattr(sources[4], keyword)
        else:
            setattr(sources[4], keyword, value)
    session = segmenting(pictures_card())
    outcome = segment_study(session, masked.save(tmp_path, sources), lambda: None)
    assert [reason for _, reason in outcome.unreadable] == [code]
    assert [len(one.sources) for one in outcome.marked] == [len(sources) - 1]
    assert len(build_segment_results(context_of(session, outcome))) == 2


@pytest.mark.parametrize(
    ("sop_class_uid", "marked"), [(CTImageStorage, 0), (SecondaryCaptureImageStorage, 1)]
)
def test_a_picture_without_position_and_frame_is_marked_only_if_its_kind_has_none(
    sop_class_uid: str, marked: int, tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    (source,) = masked.series(DRAWN.image[:1], "P-7")
    source.SOPClassUID = sop_class_uid
    del source.ImagePositionPatient, source.FrameOfReferenceUID
    session = segmenting(pictures_card())
    outcome = segment_study(session, masked.save(tmp_path, [source]), lambda: None)
    assert (len(outcome.marked), len(outcome.unreadable)) == (marked, 1 - marked)
    if marked:
        assert [kind for kind, _ in build_segment_results(context_of(session, outcome))] == ["seg", "sc"]


def test_kinds_that_need_a_frame_of_reference_are_those_that_the_writer_of_segmentations_refuses() -> None:
    pictures = {uid for uid in get_sop_class_iod_map() if "Image Storage" in UID(uid).name}
    usages = {uid: get_module_usage("frame-of-reference", uid) for uid in pictures}
    assert {uid for uid, usage in usages.items() if usage is not None and usage.value == "M"} == NEEDING


def test_the_capture_shows_the_slice_in_which_most_is_marked_with_outlines_and_sizes(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting()
    sources = masked.series(DRAWN.image, "P-7")
    context, found = made(session, tmp_path, sources)
    (capture,) = found["sc"]
    marked, index = most_marked(context)
    assert index == np.count_nonzero(marked.labels, axis=(1, 2)).argmax()
    (referenced,) = capture.SourceImageSequence
    assert referenced.ReferencedSOPInstanceUID == marked.sources[index].SOPInstanceUID
    assert capture.BurnedInAnnotation == "NO"
    pixels, seen = capture.pixel_array, as_seen(sources[index])
    left = (pixels.shape[1] - seen.shape[1]) // 2
    picture = pixels[HEADER : HEADER + seen.shape[0], left : left + seen.shape[1]]
    for segment in context.segments:
        places = np.argwhere((picture == color_of(segment)).all(axis=2))
        assert len(places)
        own = places * marked.labels.shape[1:] // seen.shape
        assert (marked.labels[index][tuple(own.T)] == segment.number).all(), "outlines lie inside"
    plain = (picture == seen[..., np.newaxis]).all(axis=2)
    assert plain.mean() > 0.5, "outlines leave the picture to be seen"
    other = context_of(session, segment_study(session, marked.paths, lambda: None))
    for ds in other.sources:
        ds.PatientName, ds.PatientID = "Somebody^Else", "X"
    shown = read_instance(marked.paths[index], with_pixels=True)
    assert np.array_equal(render_marked(other, shown), pixels), "no identity is drawn"


@pytest.mark.parametrize("color", [color_of(replace(GREY, number=number)) for number in range(1, 9)])
def test_the_colours_of_segmentation_and_picture_are_one(color: tuple[int, int, int]) -> None:
    found = hd.color.CIELabColor.from_rgb(*color).to_rgb()
    assert np.abs(np.array(found) - color).max() <= 1


@pytest.mark.dicom3tools
@pytest.mark.parametrize(
    "name", [*SERIES, "empty", "pictures", "projection", "placed projection", "lossy", "cut off"]
)
def test_results_pass_the_iod_checker(
    name: str, tmp_path: Path, segmenting: Callable[..., ModelSession], iod_checker: IODChecker
) -> None:
    sources = masked.series(DRAWN.image, "P-7", **SERIES.get(name, {}))
    card, model = make_segment_card(), {}
    if name == "empty":
        model = {"start": (50.0, 0.0, 0.0)}
    elif name == "lossy":
        for ds in sources:
            ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "8.0"
            ds.LossyImageCompressionMethod = "ISO_10918_1"
    elif name == "cut off":
        card = make_segment_card(volume=VolumeSpec(8, (1.0, 1.0, 1.0)))
    elif name.endswith(("pictures", "projection")):
        card = pictures_card(modalities=("MR", "DX"))
        more = {"FrameOfReferenceUID": "1.2.3"} if name.startswith("placed") else {}
        sources = sources if name == "pictures" else [make_instance(None, **more)]
    session = segmenting(card, **model)
    paths = masked.save(tmp_path / "study", sources)
    outcome = segment_study(session, paths, lambda: None)
    assert name != "cut off" or outcome.marked[0].cut_off
    previous = Predecessor(sources[0].StudyInstanceUID, "1.2.3", ComprehensiveSRStorage, "1.2.3.4")
    for kind, ds in build_segment_results(context_of(session, outcome, predecessors=(previous,))):
        path = tmp_path / f"{kind}.dcm"
        ds.save_as(path, enforce_file_format=True)
        assert iod_checker.errors(path) == []
        assert (ds.get("LossyImageCompression") == "01") == (name == "lossy" and kind != "sr")
