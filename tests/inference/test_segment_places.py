"""What a segmenting model marks lies on the very voxels of the series that it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from inference.preprocessing import PreprocessingSpec
from inference.results.measured import CUT_OFF
from inference.segments import VolumeSpec
from inference.volumes import cut_off, likeliest, prepare_volume, read_volume, target_grid
from tests.inference.material import make_instance, radiograph
from tests.inference.segment_material import (
    DRAWN,
    GREY,
    OBLIQUE,
    SERIES,
    SIZE,
    WHITE,
    made,
    make_segment_card,
    pictures_card,
)
from tests.trainer import masked
from trainer.segmentation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from inference.session import ModelSession


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
    name: str, tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting()
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
    spacing_mm: tuple[float, float, float], tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting(make_segment_card(volume=VolumeSpec(64, (1.0, 1.0, 1.0)),
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


@pytest.mark.parametrize(
    ("slices", "cut"), [(8, {GREY.code, WHITE.code}), (16, set[str]()), (24, set[str]())]
)
def test_a_segment_that_reaches_the_edge_of_what_the_model_sees_is_told(
    slices: int, cut: set[str], tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    image = np.full((16, 24, 16), 100, dtype=np.uint16)
    image[2:14, 4:12, 4:12], image[2:14, 12:20, 4:12] = 2300, 4000
    spec = PreprocessingSpec(rows=24, columns=16, lower_percentile=0, upper_percentile=100)
    session = segmenting(make_segment_card(volume=VolumeSpec(slices, (1.0, 1.0, 1.0)), spec=spec))
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


def test_slices_that_are_marked_one_by_one_make_one_segmentation_and_no_report(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting(pictures_card())
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


def test_slices_of_two_sizes_or_in_one_place_make_several_segmentations(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    first = masked.series(DRAWN.image, "P-7")
    more = [*masked.series(DRAWN.image, "P-7"), *masked.series(masked.draw(5, (16, 30, 20)).image, "P-7")]
    for ds in more:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, keyword, first[0].get(keyword))
    context, found = made(segmenting(pictures_card()), tmp_path, [*first, *more])
    assert sorted(one.labels.shape for one in context.marked) == [(16, 24, 16), (16, 24, 16), (16, 30, 20)]
    assert {ds.SeriesInstanceUID for ds in found["seg"]} == {found["seg"][0].SeriesInstanceUID}
    assert sorted(ds.InstanceNumber for ds in found["seg"]) == [1, 2, 3]
    assert len({ds.SOPInstanceUID for ds in found["seg"]}) == 3


@pytest.mark.parametrize("shape", [(60, 48), (48, 90), (24, 16), (20, 100)])
def test_a_projection_is_marked_on_its_own_pixels(
    shape: tuple[int, int], tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    session = segmenting(pictures_card(modalities=("DX",), spec=PreprocessingSpec(rows=48, columns=32)))
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


@pytest.mark.real_data
def test_a_real_volume_is_marked_on_its_own_voxels(
    tmp_path: Path, segmenting: Callable[..., ModelSession]
) -> None:
    spec = PreprocessingSpec(rows=40, columns=24)
    session = segmenting(make_segment_card(volume=VolumeSpec(24, (1.5, 1.5, 1.5)), spec=spec))
    drawn = masked.hippocampus(masked.hippocampus_names()[0])
    sources = masked.series(drawn.image, "P-7")
    context, found = made(session, tmp_path, sources)
    read = read_mask(found["seg"][0], read_volume(sources).planes, masked.SEGMENTS)
    labels, sure = expected_labels(session, sources)
    assert read.shape == drawn.mask.shape
    assert np.array_equal(read, context.marked[0].labels)
    assert np.array_equal(read[sure], labels[sure])
    assert session.card.input.size != SIZE
