"""The model package of a segmentation: the served model marks what the trained one marks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.package import load_package, open_package
from inference.segments import ANATOMICAL_STRUCTURE
from inference.session import ModelSession
from tests.trainer import masked
from tests.trainer.graphs import checked_source
from trainer import export
from trainer.errors import ExportError
from trainer.export import PARITY_LIMIT, PARITY_VOXELS, Parity, export_onnx, export_package
from trainer.local_round import local_round, predict, use_threads
from trainer.networks import initial_weights, with_weights
from trainer.segmentation.building import build
from trainer.segmentation.folders import read_mask_folder
from trainer.segmentation.spec import Category
from trainer.simulation import simulate
from trainer.site_rules import site_rule
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.task import TaskSpec

use_threads(1)
VOLUMES, PICTURES = masked.small_masks_task(), masked.pictures_task()
TASKS = pytest.mark.parametrize("task", [VOLUMES, PICTURES], ids=["volumes", "pictures"])


@TASKS
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_exported_model_marks_what_torch_marks(task: TaskSpec, norm: str, tmp_path: Path) -> None:
    task = replace(task, network=NetworkSpec("unet", {"features": [4, 8], "groups": 2, "norm": norm}))
    parity = export_onnx(task, initial_weights(task), masked.drawn_masks(1, 5, task), tmp_path)
    assert parity.max_abs < 1e-5
    assert parity.voxels == 0
    source = checked_source(tmp_path, "segments")
    assert [dim.dim_value for dim in source.type.tensor_type.shape.dim[1:]] == [1, *task.size]


@TASKS
def test_the_package_serves_the_trained_model_with_its_card(task: TaskSpec, tmp_path: Path) -> None:
    key, samples = Ed25519PrivateKey.generate(), masked.drawn_masks(2, 3, task)
    weights = initial_weights(task, 3)
    made = export_package(
        task,
        weights,
        samples,
        tmp_path / "package",
        card=export.model_card(
            task,
            "run-1.3",
            {"run_id": "run-1", "rounds": 3},
            {"dice": {"estimate": 0.9, "low": 0.8, "high": 1.0}},
        ),
        signing_key=key,
    )
    package = load_package(tmp_path / "package", tmp_path / "in", {"research": key.public_key()})
    assert package == replace(
        open_package(tmp_path / "package", {"research": key.public_key()}), folder=tmp_path / "in"
    )
    assert package.sha256 == made.package_sha256
    card, spec = package.card, task.segmentation
    assert spec is not None
    assert card.task == f"segmentation-{spec.spatial_dimensions}d"
    assert (card.input.preprocessing, card.input.size) == (task.preprocessing, task.size)
    if card.input.volume is not None:
        assert card.input.volume.spacing_mm == spec.spacing_mm
    found = [(one.number, one.code, one.scheme, one.meaning) for one in card.output.segments]
    assert found == [(n, s.code, s.scheme, s.meaning) for n, s in enumerate(masked.SEGMENTS, start=1)]
    assert {one.category for one in card.output.segments} == {ANATOMICAL_STRUCTURE}
    answer = ModelSession(package, threads=1).run(samples.x)
    assert answer.shape == (3, 3, *task.size)
    assert np.array_equal(answer.argmax(axis=1), predict(task, weights, samples.x))


def test_a_category_of_the_task_stands_on_the_card() -> None:
    spec = VOLUMES.segmentation
    assert spec is not None
    altered = Category("49755003", "SCT", "Morphologically Abnormal Structure")
    segments = (replace(spec.segments[0], category=altered), spec.segments[1])
    task = replace(VOLUMES, segmentation=replace(spec, segments=segments))
    found = export.model_card(task, "1", {}, {}).output.segments
    assert [vars(one.category) for one in found] == [vars(altered), vars(ANATOMICAL_STRUCTURE)]


@TASKS
@pytest.mark.parametrize("name", ["auto-fedavg", "domain-adaptation", "variation-aware"])
def test_what_a_site_uses_is_exported_as_it_was_measured(task: TaskSpec, name: str, tmp_path: Path) -> None:
    site = masked.drawn_masks_dataset(1, task, train=4, validation=2)
    result = simulate(task, {"a": site}, rounds=1, strategy=name, seed=1)
    own = local_round(task, result.weights, site, strategy=name, number=2, seed=1).own
    deployed = site_rule(name).deployed(task, result.weights, own, trained=True)
    parity = export_onnx(task, deployed, site.validation, tmp_path)
    assert parity.max_abs <= PARITY_LIMIT
    assert parity.voxels <= PARITY_VOXELS


@pytest.mark.parametrize("parity", [Parity(2 * PARITY_LIMIT), Parity(0.0, 2 * PARITY_VOXELS)])
def test_a_model_that_strays_is_not_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parity: Parity
) -> None:
    monkeypatch.setattr(export, "_compare", lambda *_: parity)
    with pytest.raises(ExportError, match="strays"):
        export_onnx(VOLUMES, initial_weights(VOLUMES), masked.drawn_masks(1, 1, VOLUMES), tmp_path)


def test_another_model_is_seen_to_stray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = with_weights(VOLUMES, initial_weights(VOLUMES, 9))
    genuine = export._to_onnx
    wrong = torch.nn.Sequential(other, torch.nn.Softmax(dim=1)).eval()
    monkeypatch.setattr(export, "_to_onnx", lambda _, *rest: genuine(wrong, *rest))
    with pytest.raises(ExportError, match="strays"):
        export_onnx(VOLUMES, initial_weights(VOLUMES), masked.drawn_masks(1, 2, VOLUMES), tmp_path)


@pytest.mark.real_data
def test_of_real_volumes_served_and_trained_model_agree(tmp_path: Path) -> None:
    task = masked.hippocampus_task(local=LocalSpec(batch_size=4, local_steps=25, learning_rate=1e-2))
    for number, name in enumerate(masked.hippocampus_names()[:8]):
        masked.write(tmp_path, f"P{number}", masked.hippocampus(name))
    dataset = build(read_mask_folder(tmp_path, task).stored, task, None)
    weights = simulate(task, {"a": dataset}, rounds=1, seed=1).weights
    parity = export_onnx(task, weights, dataset.validation, tmp_path)
    assert len(dataset.validation)
    assert predict(task, weights, dataset.validation.x).any()
    assert parity.max_abs <= PARITY_LIMIT
    assert parity.voxels <= PARITY_VOXELS
