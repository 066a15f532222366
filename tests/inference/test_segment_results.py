"""What a segmenting model marks, on the voxels of the series that it came from, as DICOM results."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SegmentationStorage
from scipy.interpolate import RegularGridInterpolator

from inference.errors import ResultError
from inference.package import open_package, write_package
from inference.preprocessing import PreprocessingSpec
from inference.results.colors import color_of
from inference.results.context import Predecessor, SegmentContext
from inference.results.marked_picture import most_marked, render_marked
from inference.results.measured import CUT_OFF
from inference.results.picture import HEADER, as_seen
from inference.segments import VolumeSpec
from inference.session import ModelSession
from inference.study import build_segment_results, is_own_result, read_instance, segment_study
from inference.volumes import cut_off, likeliest, prepare_volume, read_volume, target_grid
from tests.inference.material import make_instance, radiograph
from tests.inference.segment_material import GREY, SIZE, WHITE, make_segment_card, make_segment_onnx
from tests.trainer import masked
from trainer.segmentation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray
    from pydicom import Dataset

    from inference.card import ModelCard
    from inference.study import SegmentOutcome
    from tests.inference.conftest import IODChecker

DRAWN = masked.draw(3)
A, B = np.deg2rad(20), np.deg2rad(35)
OBLIQUE = (np.cos(A), np.sin(A), 0.0, -np.sin(A) * np.cos(B), np.cos(A) * np.cos(B), np.sin(B))
SERIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "from head to foot, columns to the right": {"orientation": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
    "sagittal": {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)},
    "oblique": {"orientation": OBLIQUE},
    "anisotropic": {"spacing_mm": (1.0, 0.6, 0.8)},
    "oblique and anisotropic": {"orientation": OBLIQUE, "spacing_mm": (0.9, 0.5, 1.0)},
}


@pytest.fixture
def opened(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Callable[..., ModelSession]:
    def do(card: ModelCard | None = None, **model: Any) -> ModelSession:
        card = card or make_segment_card()
        folder = tmp_path / "package"
        write_package(folder, make_segment_onnx(size=card.input.size, **model), card, signing_key)
        return ModelSession(open_package(folder, {"site": signing_key.public_key()}))

    return do


def context_of(session: ModelSession, outcome: SegmentOutcome, **changes: Any) -> SegmentContext:
    values: dict[str, Any] = {
        "card": session.card,
        "package_sha256": session.package_sha256,
        "revision_id": "0" * 32,
        "made_at": datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        "software_version": "0.1.0",
        "unreadable": len(outcome.unreadable),
        "marked": outcome.marked,
    }
    return SegmentContext(**{**values, **changes})


def made(
    session: ModelSession, folder: Path, instances: Sequence[Dataset]
) -> tuple[SegmentContext, dict[str, list[Dataset]]]:
    """Store a study, run the model and write its results; return what is read back, by kind."""
    paths = masked.save(folder / "study", list(instances))
    context = context_of(session, segment_study(session, paths, lambda: None))
    found: dict[str, list[Dataset]] = {}
    for number, (kind, ds) in enumerate(build_segment_results(context)):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        found.setdefault(kind, []).append(dcmread(folder / f"{number}.dcm"))
    return context, found


def expected_labels(session: ModelSession, sources: Sequence[Dataset]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the class of each voxel by positions in the patient alone, and where it is beyond doubt."""
    spec = session.card.input.volume
    assert spec is not None
    volume = read_volume(sources)
    preparation = session.card.input.preprocessing
    target = target_grid(volume.grid, (spec.slices, preparation.rows, preparation.columns), spec.spacing_mm)
    shares = session.run(prepare_volume(volume, target, preparation)[np.newaxis])[0]
    axes = [np.arange(extent, dtype=float) for extent in target.shape]
    index = np.indices(volume.grid.shape).reshape(3, -1)
    places = volume.grid.affine @ np.vstack([index, np.ones(index.shape[1])])
    there = np.round((np.linalg.inv(target.affine) @ places)[:3].T, 6)
    sampled = [RegularGridInterpolator(axes, share, bounds_error=False, fill_value=0.0) for share in shares]
    own = np.stack([sample(there) for sample in sampled[1:]])
    every = np.concatenate([1 - own.sum(axis=0, keepdims=True), own])
    ranked = np.sort(every, axis=0)
    shape = volume.grid.shape
    return every.argmax(axis=0).reshape(shape), (ranked[-1] - ranked[-2] > 1e-4).reshape(shape)


@pytest.mark.parametrize("name", SERIES)
def test_the_segmentation_marks_the_voxels_that_the_model_marks_wherever_they_lie(
    name: str, tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened()
    sources = masked.series(DRAWN.image, "P-7", **SERIES[name])
    context, found = made(session, tmp_path, list(np.random.default_rng(1).permutation(np.array(sources))))
    volume = read_volume(sources)
    (segmentation,) = found["seg"]
    read = read_mask(segmentation, volume.planes, masked.SEGMENTS)
    assert np.array_equal(read, context.marked[0].labels), "what is written is what was marked"
    labels, sure = expected_labels(session, sources)
    assert np.array_equal(read[sure], labels[sure])
    assert sure.mean() > 0.99
    assert set(np.unique(read)) == {0, 1, 2}
    by_library = hd.seg.Segmentation.from_dataset(segmentation).get_pixels_by_source_instance(
        [plane.sop_instance_uid for plane in volume.planes],
        combine_segments=True,
        ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(by_library, read)


@pytest.mark.parametrize("spacing_mm", [(4.0, 1.0, 1.0), (2.0, 2.5, 3.0)])
def test_on_a_series_coarser_than_the_model_most_of_a_voxel_decides(
    spacing_mm: tuple[float, float, float], tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened(make_segment_card(volume=VolumeSpec(64, (1.0, 1.0, 1.0)),
                                       spec=PreprocessingSpec(rows=64, columns=64)))  # fmt: skip
    sources = masked.series(DRAWN.image, "P-7", spacing_mm=spacing_mm)
    context, found = made(session, tmp_path, sources)
    read = read_mask(found["seg"][0], read_volume(sources).planes, masked.SEGMENTS)
    assert np.array_equal(read, context.marked[0].labels)
    by_voxel = session_of_each_voxel(sources, session)
    overlap = 2 * ((read > 0) & (by_voxel > 0)).sum() / ((read > 0).sum() + (by_voxel > 0).sum())
    assert overlap > 0.8


def session_of_each_voxel(sources: Sequence[Dataset], session: ModelSession) -> NDArray[np.uint8]:
    """Return what the model, which looks at each voxel alone, says of the voxels of the series."""
    volume = read_volume(sources)
    x = prepare_volume(volume, volume.grid, session.card.input.preprocessing)[0]
    logits = np.stack([-4.0 * x, 0.0 * x + 0.5, 4.0 * x - 3.0])
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    return likeliest(list(shares[1:].astype(np.float32)))


def test_the_segmentation_says_what_of_what_by_which_model(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened()
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
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened()
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


@pytest.mark.parametrize(
    ("slices", "cut"), [(8, {GREY.code, WHITE.code}), (16, set[str]()), (24, set[str]())]
)
def test_a_segment_that_reaches_the_edge_of_what_the_model_sees_is_told(
    slices: int, cut: set[str], tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    image = np.full((16, 24, 16), 100, dtype=np.uint16)
    image[2:14, 4:12, 4:12], image[2:14, 12:20, 4:12] = 2300, 4000
    spec = PreprocessingSpec(rows=24, columns=16, lower_percentile=0, upper_percentile=100)
    session = opened(make_segment_card(volume=VolumeSpec(slices, (1.0, 1.0, 1.0)), spec=spec))
    context, found = made(session, tmp_path, masked.series(image, "P-7"))
    groups = hd.sr.ComprehensiveSR.from_dataset(
        found["sr"][0]
    ).content.get_volumetric_roi_measurement_groups()
    told = {group.finding_type.value for group in groups if group.get_qualitative_evaluations(CUT_OFF)}
    assert told == cut
    assert {
        segment.code for segment in context.segments if segment.number in context.marked[0].cut_off
    } == cut


def test_what_ends_where_the_series_ends_is_not_cut_off() -> None:
    volume = read_volume(masked.series(DRAWN.image, "P-7"))
    everything = np.ones((24, 32, 24), dtype=np.uint8)
    assert cut_off(everything, target_grid(volume.grid, (24, 32, 24), (1.0,) * 3), volume.grid) == frozenset()
    same = target_grid(volume.grid, (16, 24, 16), (1.0,) * 3)
    assert cut_off(everything[:16, :24, :16], same, volume.grid) == frozenset()
    assert cut_off(
        everything[:16, :24, :15], target_grid(volume.grid, (16, 24, 15), (1.0,) * 3), volume.grid
    ) == {1}
    assert (
        cut_off(np.zeros((8, 8, 8), np.uint8), target_grid(volume.grid, (8, 8, 8), (1.0,) * 3), volume.grid)
        == frozenset()
    )


def test_a_retry_makes_the_very_same_instances(tmp_path: Path, opened: Callable[..., ModelSession]) -> None:
    session = opened()
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
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    first, second = masked.series(DRAWN.image, "P-7"), masked.series(masked.draw(4).image, "P-7")
    for ds in second:
        ds.StudyInstanceUID = first[0].StudyInstanceUID
    _, found = made(opened(), tmp_path, [*first, *second])
    assert len(found["seg"]) == 2
    assert len({ds.SeriesInstanceUID for ds in found["seg"]}) == 2
    assert len({ds.SOPInstanceUID for ds in found["seg"]}) == 2
    (report,) = found["sr"]
    groups = hd.sr.ComprehensiveSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 4
    assert len({group.tracking_uid for group in groups}) == 4


def test_where_nothing_is_marked_the_segmentation_is_empty_and_small_and_the_report_says_zero(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    context, found = made(opened(start=(50.0, 0.0, 0.0)), tmp_path, masked.series(DRAWN.image, "P-7"))
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
    change: Callable[[list[Dataset]], None], code: str, tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    spoilt, good = masked.series(DRAWN.image, "P-7"), masked.series(DRAWN.image, "P-7")
    change(spoilt)
    session = opened()
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
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    sources = masked.series(DRAWN.image, "P-7")
    sources[3].PatientID = "P-8"
    session = opened()
    outcome = segment_study(session, masked.save(tmp_path, sources), lambda: None)
    with pytest.raises(ResultError, match=r"identity\.mismatch") as refused:
        build_segment_results(context_of(session, outcome))
    assert "P-8" not in str(refused.value)


def pictures_card(**changes: Any) -> ModelCard:
    return make_segment_card(volume=None, **changes)


def test_slices_that_are_marked_one_by_one_make_one_segmentation_and_no_report(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened(pictures_card())
    sources = masked.series(DRAWN.image, "P-7", orientation=OBLIQUE)
    context, found = made(session, tmp_path, sources)
    assert set(found) == {"seg", "sc"}
    (ds,) = found["seg"]
    read = read_mask(ds, read_volume(sources).planes, masked.SEGMENTS)
    by_uid = dict(
        zip((s.SOPInstanceUID for s in context.marked[0].sources), context.marked[0].labels, strict=True)
    )
    assert np.array_equal(read, np.stack([by_uid[source.SOPInstanceUID] for source in sources]))
    assert set(np.unique(read)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"FrameOfReferenceUID": ""}, "volume.frame_of_reference"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "volume.plane"),
        ({"PixelData": b"\0\0"}, "pixel.decode"),
    ],
)
def test_a_picture_that_cannot_be_placed_or_read_is_told_and_the_others_are_marked(
    changes: dict[str, Any], code: str, tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    sources = masked.series(DRAWN.image, "P-7")
    for keyword, value in changes.items():
        setattr(sources[4], keyword, value)
    session = opened(pictures_card())
    outcome = segment_study(session, masked.save(tmp_path, sources), lambda: None)
    assert [reason for _, reason in outcome.unreadable] == [code]
    assert [len(one.sources) for one in outcome.marked] == [len(sources) - 1]
    assert len(build_segment_results(context_of(session, outcome))) == 2


def test_slices_of_two_sizes_or_in_one_place_make_several_segmentations(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    first = masked.series(DRAWN.image, "P-7")
    more = [*masked.series(DRAWN.image, "P-7"), *masked.series(masked.draw(5, (16, 30, 20)).image, "P-7")]
    for ds in more:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, keyword, first[0].get(keyword))
    context, found = made(opened(pictures_card()), tmp_path, [*first, *more])
    assert sorted(one.labels.shape for one in context.marked) == [(16, 24, 16), (16, 24, 16), (16, 30, 20)]
    assert {ds.SeriesInstanceUID for ds in found["seg"]} == {found["seg"][0].SeriesInstanceUID}
    assert sorted(ds.InstanceNumber for ds in found["seg"]) == [1, 2, 3]
    assert len({ds.SOPInstanceUID for ds in found["seg"]}) == 3


@pytest.mark.parametrize("shape", [(60, 48), (48, 90), (24, 16), (20, 100)])
def test_a_projection_is_marked_on_its_own_pixels(
    shape: tuple[int, int], tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened(pictures_card(modalities=("DX",), spec=PreprocessingSpec(rows=48, columns=32)))
    expected = np.zeros(shape, dtype=np.uint8)
    expected[shape[0] // 2 :, : shape[1] // 2] = 1
    expected[:, shape[1] // 2 :] = 2
    picture = np.array([0, 2400, 4095], dtype=np.uint16)[expected]
    context, found = made(session, tmp_path, [make_instance(picture), make_instance(radiograph(33, 44))])
    assert len(found["seg"]) == 2, "projections do not say where they lie"
    one = next(one for one in context.marked if one.labels.shape[1:] == shape)
    assert (one.labels[0] == expected).mean() > 0.9
    assert one.labels[0][:, -1].all(), "up to the edge"
    for ds in found["seg"]:
        (referenced,) = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        same = next(
            m for m in context.marked if m.sources[0].SOPInstanceUID == referenced.ReferencedSOPInstanceUID
        )
        frames = hd.seg.Segmentation.from_dataset(ds).get_pixels_by_source_instance(
            [referenced.ReferencedSOPInstanceUID], combine_segments=True
        )
        assert np.array_equal(frames, same.labels)


def test_the_capture_shows_the_slice_in_which_most_is_marked_with_outlines_and_sizes(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    session = opened()
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
    name: str, tmp_path: Path, opened: Callable[..., ModelSession], iod_checker: IODChecker
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
    session = opened(card, **model)
    paths = masked.save(tmp_path / "study", sources)
    outcome = segment_study(session, paths, lambda: None)
    assert name != "cut off" or outcome.marked[0].cut_off
    previous = Predecessor(sources[0].StudyInstanceUID, "1.2.3", ComprehensiveSRStorage, "1.2.3.4")
    for kind, ds in build_segment_results(context_of(session, outcome, predecessors=(previous,))):
        path = tmp_path / f"{kind}.dcm"
        ds.save_as(path, enforce_file_format=True)
        assert iod_checker.errors(path) == []
        assert (ds.get("LossyImageCompression") == "01") == (name == "lossy" and kind != "sr")


@pytest.mark.real_data
def test_a_real_volume_is_marked_on_its_own_voxels(
    tmp_path: Path, opened: Callable[..., ModelSession]
) -> None:
    spec = PreprocessingSpec(rows=40, columns=24)
    session = opened(make_segment_card(volume=VolumeSpec(24, (1.5, 1.5, 1.5)), spec=spec))
    drawn = masked.hippocampus(masked.hippocampus_names()[0])
    sources = masked.series(drawn.image, "P-7")
    context, found = made(session, tmp_path, sources)
    read = read_mask(found["seg"][0], read_volume(sources).planes, masked.SEGMENTS)
    labels, sure = expected_labels(session, sources)
    assert read.shape == drawn.mask.shape
    assert np.array_equal(read, context.marked[0].labels)
    assert np.array_equal(read[sure], labels[sure])
    assert session.card.input.size != SIZE
