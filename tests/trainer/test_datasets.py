from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.preprocessing import PreprocessingSpec, prepare
from tests.trainer.samples import dicom_picture, picture, small_task, write_case, write_cases
from trainer import datasets
from trainer.datasets import Dataset, Samples, build, require_trainable, split
from trainer.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path


@given(st.sets(st.text(min_size=1, max_size=8), max_size=60), st.floats(0.1, 0.9), st.text(max_size=4))
def test_the_split_is_a_partition_that_does_not_change_when_patients_join(
    pseudonyms: set[str], fraction: float, salt: str
) -> None:
    train, validation = split(pseudonyms, fraction, salt)
    assert train | validation == pseudonyms
    assert not train & validation
    more_train, more_validation = split(pseudonyms | {"somebody new"}, fraction, salt)
    assert train <= more_train
    assert validation <= more_validation


def test_the_split_meets_the_fraction_on_average_and_depends_on_the_salt() -> None:
    everybody = {f"P{i}" for i in range(4000)}
    _, first = split(everybody, 0.25, "a")
    _, second = split(everybody, 0.25, "b")
    assert len(first) / 4000 == pytest.approx(0.25, abs=0.03)
    assert len(first & second) / 4000 == pytest.approx(0.0625, abs=0.02)


def test_all_instances_of_a_patient_are_on_one_side(tmp_path: Path) -> None:
    dataset = build(write_cases(tmp_path, 40, per_patient=4), small_task(validation_fraction=0.5), None)
    assert len(dataset.train) + len(dataset.validation) == 40
    assert not set(dataset.train.pseudonyms) & set(dataset.validation.pseudonyms)
    assert min(len(dataset.train), len(dataset.validation)) > 0


def test_the_arrays_are_what_serving_prepares(tmp_path: Path) -> None:
    task = small_task()
    ds = dicom_picture(picture(np.random.default_rng(0), 1), "P1")
    dataset = build([write_case(tmp_path, ds, 1)], task, None)
    found = dataset.train if len(dataset.train) else dataset.validation
    assert np.array_equal(found.x[0], prepare(ds, task.preprocessing))
    assert found.y.tolist() == [1]


def test_the_order_of_cases_changes_nothing(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 12)
    one = build(cases, small_task(), None)
    other = build(reversed(cases), small_task(), None)
    assert np.array_equal(one.train.x, other.train.x)
    assert one.content_sha256 == other.content_sha256
    assert len(one.content.splitlines()) == 12
    assert json.loads(one.content.splitlines()[0])[2] in {"train", "validation"}


def test_a_case_that_cannot_be_used_is_skipped_with_its_reason(tmp_path: Path) -> None:
    good = write_cases(tmp_path, 3)
    generator = np.random.default_rng(9)
    computed = write_case(tmp_path, dicom_picture(picture(generator, 1), "P7", Modality="CT"), 1)
    short = dicom_picture(picture(generator, 1), "P8")
    short.PixelData = short.PixelData[:100]
    truncated = write_case(tmp_path, short, 1)
    text = tmp_path / "text.dcm"
    text.write_text("not DICOM at all")
    other = write_case(tmp_path, dicom_picture(picture(generator, 0), "P9"), 0)
    contradicted = [replace(other, label=1), other]
    changed = replace(write_case(tmp_path, dicom_picture(picture(generator, 0), "P10"), 0), sha256="0" * 64)
    cases = [
        *good,
        good[0],
        computed,
        truncated,
        replace(good[0], path=text, sha256=hashlib.sha256(text.read_bytes()).hexdigest()),
        *contradicted,
        changed,
        replace(good[1], path=tmp_path / "gone.dcm", sha256="1" * 64),
    ]
    dataset = build(cases, small_task(), tmp_path / "cache")
    assert len(dataset.train) + len(dataset.validation) == 3
    reasons = dict(dataset.skipped)
    pixel_reason = [reason for reason in reasons if reason.startswith("pixel.")]
    assert len(pixel_reason) == 1
    del reasons[pixel_reason[0]]
    assert reasons == {
        "contradiction": 2,
        "duplicate": 1,
        "hash_mismatch": 1,
        "missing": 1,
        "modality": 1,
        "unreadable": 1,
    }


def test_prepared_arrays_are_cached_by_content_and_a_spoilt_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, cache, task = write_cases(tmp_path, 6), tmp_path / "cache", small_task()
    first = build(cases, task, cache)
    calls = 0

    def counting(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "prepare", counting)
    second = build(cases, task, cache)
    assert calls == 0
    assert np.array_equal(first.train.x, second.train.x)
    stored = sorted(cache.rglob("*.npy"))
    assert len(stored) == 6
    stored[0].write_bytes(stored[0].read_bytes()[:-10])
    stored[1].write_bytes(b"")
    np.save(stored[2], np.zeros((1, 8, 8), dtype=np.float32))
    assert np.array_equal(build(cases, task, cache).train.x, first.train.x)
    assert calls == 3
    build(cases, small_task(preprocessing=PreprocessingSpec(rows=16, columns=16)), cache)
    assert calls == 9


def test_progress_is_told_of_every_case(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build(write_cases(tmp_path, 3), small_task(), None, lambda *step: told.append(step))
    assert told == [("prepare", 1, 3), ("prepare", 2, 3), ("prepare", 3, 3)]


def test_a_dataset_without_a_training_case_is_refused() -> None:
    nothing = build([], small_task(), None)
    assert nothing.counts["train"] == 0
    assert nothing.train.x.shape == (0, 1, 32, 32)
    with pytest.raises(DatasetError):
        require_trainable(nothing)


def test_counts_say_cases_positives_and_subjects() -> None:
    part = Samples(np.zeros((3, 1, 2, 2), np.float32), np.array([1, 0, 1], np.uint8), ("A", "A", "B"))
    assert Dataset(part, Samples.join([part, part])).counts == {
        "train": 3,
        "train_positive": 2,
        "train_subjects": 2,
        "validation": 6,
        "validation_positive": 4,
        "validation_subjects": 2,
    }
