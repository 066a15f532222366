from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset as DicomDataset
from pydicom import dcmread

from tests.trainer import masked
from tests.trainer.healthy import LESION, healthy_task, with_anomalies, write_healthy, write_sick
from trainer.anomaly.spec import AnomalySpec
from trainer.masked_cases import build_masked
from trainer.segmentation.building import IMAGE, MASK
from trainer.segmentation.folders import read_mask_folder
from trainer.segmentation.spec import Segment

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.datasets import Dataset, Samples
    from trainer.task import TaskSpec

SHAPE = (3, 16, 16)
TASK = healthy_task(validation_fraction=0.5)


def image(seed: int) -> NDArray[np.uint16]:
    return masked.draw(seed, (16, 16, 16)).image[: SHAPE[0]]


def read(folder: Path, task: TaskSpec = TASK, cache: Path | None = None) -> Dataset:
    return build_masked(read_mask_folder(folder, task).stored, task, cache)


def filled(folder: Path, healthy: int = 8) -> None:
    for number in range(healthy):
        write_healthy(folder, f"well-{number}", image(number))
    write_sick(folder, "sick", with_anomalies(image(50), np.random.default_rng(1)))


def owners(samples: Samples) -> set[str]:
    return {owner.strip() for owner in samples.pseudonyms}


def test_healthy_people_are_split_and_who_has_an_anomaly_is_held_out(tmp_path: Path) -> None:
    filled(tmp_path)
    found = read(tmp_path)
    everybody = {f"well-{number}" for number in range(8)}
    assert owners(found.train) | owners(found.validation) == everybody | {"sick"}
    assert owners(found.train) < everybody
    assert not owners(found.train) & owners(found.validation)
    assert len(found.train) == 3 * len(owners(found.train))
    assert found.train.positives == 0
    assert found.validation.positives == 3
    assert set(np.unique(found.validation.y)) == {0, 1}
    assert dict(found.skipped) == {}
    kinds = [entry.label for entry in found.entries]
    assert (kinds.count(IMAGE), kinds.count(MASK)) == (27, 1)
    assert all(entry.split == "validation" for entry in found.entries if entry.label == MASK)


def test_masks_lie_where_the_anomalies_are(tmp_path: Path) -> None:
    drawn = with_anomalies(image(50), np.random.default_rng(1))
    write_sick(tmp_path, "sick", drawn)
    found = read(tmp_path)
    assert sorted(mask.sum() for mask in found.validation.y) == sorted(mask.sum() for mask in drawn.mask)
    assert {mask.tobytes() for mask in found.validation.y} == {mask.tobytes() for mask in drawn.mask}


def test_pictures_without_a_mask_of_who_has_one_are_neither_trained_on_nor_measured(tmp_path: Path) -> None:
    filled(tmp_path)
    masked.save(tmp_path / "more", masked.series(image(60), "sick"))
    found = read(tmp_path)
    assert dict(found.skipped) == {"mask.missing": 3}
    assert len(found.train) + len(found.validation) == 27


def test_an_unreadable_mask_keeps_its_patient_out_of_training(tmp_path: Path) -> None:
    filled(tmp_path)
    before = read(tmp_path)
    patient = min(owners(before.train))
    mask = masked.segmentation(masked.series(image(70), patient), np.ones(SHAPE, dtype=np.uint8), LESION)
    del mask.SegmentSequence, mask.ReferencedSeriesSequence, mask.PerFrameFunctionalGroupsSequence
    masked.save(tmp_path / "torn", [mask])
    found = read(tmp_path)
    assert owners(found.train) == owners(before.train) - {patient}
    assert patient not in owners(found.validation)
    assert dict(found.skipped) == {"mask.missing": 3, "mask.unreadable": 1}


def test_what_somebody_else_s_mask_names_is_not_trained_on(tmp_path: Path) -> None:
    filled(tmp_path)
    before = read(tmp_path)
    patient = min(owners(before.train))
    sources: list[DicomDataset] = [dcmread(path) for path in sorted((tmp_path / patient).glob("*.dcm"))]
    mask = masked.segmentation(sources, np.ones(SHAPE, dtype=np.uint8), LESION)
    del mask.PatientID  # the element itself is the source's
    mask.PatientID = "stranger"
    masked.save(tmp_path / "stray", [mask])
    found = read(tmp_path)
    assert owners(found.train) == owners(before.train) - {patient}
    assert dict(found.skipped) == {"mask.missing": 3, "mask.stray": 1}


def test_masks_of_something_else_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    filled(tmp_path)
    before = read(tmp_path)
    sources = masked.series(image(80), "anatomy")
    organ = masked.segmentation(sources, np.ones(SHAPE, dtype=np.uint8))
    masked.save(tmp_path / "anatomy", [*sources, organ])
    found = read(tmp_path)
    assert len(found.train) + len(found.validation) == len(before.train) + len(before.validation) + 3
    assert found.validation.positives == before.validation.positives
    assert dict(found.skipped) == {}


def test_several_codes_are_one_anomaly(tmp_path: Path) -> None:
    both = (*LESION, Segment("108369006", "SCT", "Neoplasm"))
    sources = masked.series(image(90), "sick")
    marks = np.zeros(SHAPE, dtype=np.uint8)
    marks[:, :4, :4], marks[:, 8:, 8:] = 1, 2
    masked.save(tmp_path, [*sources, masked.segmentation(sources, marks, both)])
    task = replace(TASK, anomaly=AnomalySpec(both))
    assert np.array_equal(read(tmp_path, task).validation.y, (marks > 0).astype(np.uint8))
    assert read(tmp_path).validation.y.sum() == (marks == 1).sum()


def test_pictures_of_several_sizes_make_a_healthy_series(tmp_path: Path) -> None:
    sources = masked.series(image(95), "well")
    sources[0].Rows = 8
    sources[0].PixelData = sources[0].PixelData[: 8 * 16 * 2]
    masked.save(tmp_path, sources)
    found = read(tmp_path)
    assert len(found.train) + len(found.validation) == 3


def test_the_cache_gives_the_same_arrays(tmp_path: Path) -> None:
    filled(tmp_path / "site", healthy=3)
    first, again = (read(tmp_path / "site", cache=tmp_path / "cache") for _ in range(2))
    assert list((tmp_path / "cache").rglob("*.npz"))
    for part in ("train", "validation"):
        assert np.array_equal(getattr(first, part).x, getattr(again, part).x)
        assert np.array_equal(getattr(first, part).y, getattr(again, part).y)
    assert first.content_sha256 == again.content_sha256
