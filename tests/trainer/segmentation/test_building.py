"""From stored pictures and masks to arrays: what fits, what is left out and why."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from inference.preprocessing import PreprocessingSpec
from tests.trainer import masked
from trainer.segmentation.building import build
from trainer.segmentation.cases import gather
from trainer.segmentation.folders import read_mask_folder
from trainer.segmentation.spec import Segment, SegmentationSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.datasets import Dataset
    from trainer.task import TaskSpec

TASK = masked.small_masks_task()
PICTURES = masked.pictures_task()


def written(folder: Path, count: int, **options: Any) -> list[masked.Drawn]:
    drawn = [masked.draw(number) for number in range(count)]
    for number, one in enumerate(drawn):
        masked.write(folder, f"P{number}", one, **options)
    return drawn


def built(folder: Path, task: TaskSpec = TASK, cache: Path | None = None) -> Dataset:
    return build(read_mask_folder(folder, task).stored, task, cache)


def whole(dataset: Dataset) -> dict[str, Any]:
    """Return the mask by patient of a task of volumes."""
    parts = (dataset.train, dataset.validation)
    return {
        owner.strip(): mask for part in parts for owner, mask in zip(part.pseudonyms, part.y, strict=True)
    }


def test_volumes_come_out_as_they_were_drawn_each_patient_on_one_side(tmp_path: Path) -> None:
    drawn = written(tmp_path, 6)
    dataset = built(tmp_path)
    found = whole(dataset)
    assert {name: np.array_equal(found[name], drawn[int(name[1:])].mask) for name in found} == {
        f"P{number}": True for number in range(6)
    }
    assert not set(dataset.train.pseudonyms) & set(dataset.validation.pseudonyms)
    assert dataset.train.x.shape[1:] == (1, *TASK.size)
    assert dataset.skipped == {}
    assert {entry.label for entry in dataset.entries} == {0, 1}
    assert len(dataset.entries) == 6 * 17


def test_order_and_names_of_files_do_not_matter_and_the_cache_gives_the_same(tmp_path: Path) -> None:
    written(tmp_path / "site", 4)
    stored = read_mask_folder(tmp_path / "site", TASK).stored
    first = build(stored, TASK, tmp_path / "cache")
    second = build(stored[::-1], TASK, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(b"spoilt")
    third = build(stored, TASK, tmp_path / "cache")
    for other in (second, third):
        assert np.array_equal(first.train.x, other.train.x)
        assert np.array_equal(first.train.y, other.train.y)
        assert other.content_sha256 == first.content_sha256


def test_image_and_mask_go_to_the_same_place_on_another_grid(tmp_path: Path) -> None:
    written(tmp_path, 4, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0), spacing_mm=(2.0, 1.0, 1.0))
    task = masked.small_masks_task(
        preprocessing=PreprocessingSpec(rows=32, columns=40),
        segmentation=SegmentationSpec(3, masked.SEGMENTS, slices=32, spacing_mm=(1.0, 1.0, 1.0)),
    )
    dataset = built(tmp_path, task)
    x, y = dataset.train.x[:, 0], dataset.train.y
    assert [float(x[y == number].mean().round()) for number in (0, 1, 2)] == sorted(
        float(x[y == number].mean().round()) for number in (0, 1, 2)
    )
    assert x[y == 2].mean() > x[y == 1].mean() + 0.5 > x[y == 0].mean() + 1


def test_slices_are_cases_of_a_task_of_pictures(tmp_path: Path) -> None:
    drawn = written(tmp_path, 4)
    dataset = built(tmp_path, PICTURES)
    assert len(dataset.train) + len(dataset.validation) == sum(len(one.mask) for one in drawn)
    total = sum(int((part.y == 2).sum()) for part in (dataset.train, dataset.validation))
    assert total == sum(int((one.mask == 2).sum()) for one in drawn)
    assert dataset.train.y.shape[1:] == PICTURES.size == (24, 16)


def test_projections_that_do_not_lie_anywhere_are_matched_by_what_the_mask_names(tmp_path: Path) -> None:
    drawn = masked.draw(1)
    sources = masked.series(drawn.image[7:9], "P")
    mask = masked.segmentation(sources, drawn.mask[7:9])
    for ds in (*sources, mask):
        del ds.FrameOfReferenceUID
    for ds in sources:
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
    for frame in mask.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    masked.save(tmp_path, [*sources, mask])
    dataset = built(tmp_path, PICTURES)
    found = np.concatenate([dataset.train.y, dataset.validation.y])
    order = np.argsort([str(ds.SOPInstanceUID) for ds in sources])
    assert np.array_equal(found, drawn.mask[7:9][order])
    masked.save(tmp_path, masked.series(drawn.image, "Q"))
    assert dict(built(tmp_path, PICTURES).skipped) == {"mask.missing": len(drawn.image)}


def test_a_picture_that_the_mask_does_not_name_is_no_case(tmp_path: Path) -> None:
    drawn = masked.draw(1)
    sources = masked.series(drawn.image, "P")
    masked.save(tmp_path, [*sources, masked.segmentation(sources[4:], drawn.mask[4:])])
    dataset = built(tmp_path, PICTURES)
    assert len(dataset.train) + len(dataset.validation) == 12
    assert dict(dataset.skipped) == {"mask.missing": 4}


def spoilt(folder: Path, change: Callable[[list[Any], Any], Any]) -> dict[str, int]:
    """Write one good patient, and one that is changed; return what was left out."""
    written(folder, 1)
    drawn = masked.draw(9)
    sources = masked.series(drawn.image, "Q")
    mask = masked.segmentation(sources, drawn.mask)
    kept = change(sources, mask)
    masked.save(folder / "Q", kept if kept is not None else [*sources, mask])
    dataset = built(folder)
    assert set(whole(dataset)) == {"P0"}
    return dict(dataset.skipped)


def _alone(sources: list[Any], mask: Any) -> list[Any]:
    del mask
    return sources


def _without(sources: list[Any], mask: Any) -> list[Any]:
    del sources
    return [mask]


def _cut(sources: list[Any], mask: Any) -> None:
    del sources
    mask.PixelData = mask.PixelData[: len(mask.PixelData) // 4 * 2]


def _empty(sources: list[Any], mask: Any) -> list[Any]:
    del mask
    return [*sources, masked.segmentation(sources, np.zeros((16, 24, 16), np.uint8))]


def _far(sources: list[Any], mask: Any) -> list[Any]:
    """Mark a corner that the input does not reach."""
    del sources, mask
    image = np.random.default_rng(0).integers(0, 900, (16, 80, 16)).astype(np.uint16)
    marked = np.zeros(image.shape, np.uint8)
    marked[2:4, :3, 2:4] = 1
    long = masked.series(image, "Q")
    return [*long, masked.segmentation(long, marked)]


def _slope(sources: list[Any], mask: Any) -> None:
    del mask
    sources[3].RescaleSlope, sources[3].RescaleIntercept = "1e308", "1e308"
    sources[3].PixelData = b"\xff\x0f" * (24 * 16)


def _other_frame(sources: list[Any], mask: Any) -> None:
    del sources
    mask.FrameOfReferenceUID = generate_uid()


def _somebody_else(sources: list[Any], mask: Any) -> None:
    del sources, mask.PatientID  # the element itself is the source's
    mask.PatientID = "somebody"


def _second_reader(sources: list[Any], mask: Any) -> list[Any]:
    return [*sources, mask, masked.segmentation(sources, masked.draw(9).mask)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_alone, {"mask.missing": 1}),
        (_without, {"mask.stray": 1}),
        (_empty, {"mask.empty": 1}),
        (_far, {"mask.outside": 1}),
        (_other_frame, {"mask.frame_of_reference": 1}),
        (_somebody_else, {"mask.missing": 1, "mask.stray": 1}),
        (_second_reader, {"mask.overlap": 1}),
        (lambda sources, mask: [*sources[:3], *sources[4:], mask], {"mask.reference": 1}),
        (_slope, {"pixel.modality_lut": 1}),
        (_cut, {"mask.frames": 1}),
    ],
    ids=[
        "no mask", "no series", "empty", "outside", "frame of reference", "somebody else's", "two readers",
        "a slice missing", "not finite", "frames missing",
    ],
)  # fmt: skip
def test_a_mask_that_cannot_be_used_leaves_its_series_out_and_is_counted(
    tmp_path: Path, change: Callable[[list[Any], Any], Any], expected: dict[str, int]
) -> None:
    assert spoilt(tmp_path, change) == expected


def test_an_instance_with_two_contents_is_used_in_neither(tmp_path: Path) -> None:
    drawn = masked.draw(9)
    sources = masked.series(drawn.image, "Q")
    mask = masked.segmentation(sources, drawn.mask)
    masked.save(tmp_path / "one", [*sources, mask])
    other = deepcopy(sources[3])
    other.PixelData = b"\0" * len(other.PixelData)
    masked.save(tmp_path / "two", [other])
    assert dict(built(tmp_path).skipped) == {"contradiction": 2, "mask.reference": 1}


def test_a_mask_of_other_structures_does_not_spoil_the_one_that_is_asked_for(tmp_path: Path) -> None:
    drawn = masked.draw(1)
    sources = masked.series(drawn.image, "P")
    liver = (Segment("10200004", "SCT", "Liver"),)
    other = masked.segmentation(sources, (drawn.mask == 0).astype(np.uint8), liver)
    masked.save(tmp_path, [*sources, masked.segmentation(sources, drawn.mask), other])
    assert np.array_equal(whole(built(tmp_path))["P"], drawn.mask)


def test_a_file_that_changed_since_it_was_stored_is_not_used(tmp_path: Path) -> None:
    written(tmp_path, 1)
    stored = read_mask_folder(tmp_path, TASK).stored
    path = next(one.path for one in stored if one.modality == "MR")
    path.write_bytes(path.read_bytes() + b"\0\0")
    assert dict(build(stored, TASK, None).skipped) == {"hash_mismatch": 1}
    path.unlink()
    assert dict(build(stored, TASK, None).skipped) == {"missing": 1}


def test_a_folder_says_which_files_were_no_part_of_it(tmp_path: Path) -> None:
    written(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "labels.csv").write_text("patient_id,label,value\n")
    found = read_mask_folder(tmp_path, masked.small_masks_task(modalities=("CT",)))
    assert found.skipped == {"modality": 16, "unreadable": 1}
    assert len(gather(read_mask_folder(tmp_path, TASK).stored, TASK).series) == 1
