"""The model package of an anomaly task: the served model gives the residuals that the site measures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.card import ANOMALY_2D
from inference.deviations import DEVIATION, Threshold
from inference.package import load_package
from inference.session import ModelSession
from tests.trainer import masked
from tests.trainer.graphs import checked_source
from tests.trainer.healthy import (
    healthy_dataset,
    healthy_task,
    with_anomalies,
    with_spots,
    write_healthy,
    write_sick,
)
from trainer import export
from trainer.anomaly import APPEARANCE
from trainer.anomaly.measures import AnomalyMetrics
from trainer.datasets import Dataset
from trainer.errors import ExportError
from trainer.export import PARITY_LIMIT, PARITY_VOXELS, Parity, export_onnx, export_package
from trainer.local_round import evaluate, local_round, predict, use_threads
from trainer.masked_cases import build_masked
from trainer.networks import initial_weights, with_weights
from trainer.segmentation.folders import read_mask_folder
from trainer.simulation import simulate
from trainer.site_rules import site_rule

if TYPE_CHECKING:
    from pathlib import Path

use_threads(1)
TASK = healthy_task()
SITE = healthy_dataset(0, TASK)
THRESHOLD = Threshold(0.5, 0.98, pictures=8, people=8)


def test_the_exported_model_gives_the_residuals_that_are_measured(tmp_path: Path) -> None:
    parity = export_onnx(TASK, initial_weights(TASK), SITE.validation, tmp_path, THRESHOLD)
    assert parity.max_abs < 1e-5
    assert parity.voxels == 0
    checked_source(tmp_path, "residual")


def test_the_package_has_the_threshold_of_healthy_people_alone(tmp_path: Path) -> None:
    key, weights = Ed25519PrivateKey.generate(), initial_weights(TASK, 3)
    metrics = evaluate(TASK, weights, SITE)
    assert isinstance(metrics, AnomalyMetrics)
    made = export_package(
        TASK,
        weights,
        SITE.validation,
        tmp_path / "package",
        card=export.model_card(TASK, "run-1.3", {"run_id": "run-1"}, metrics.to_json()),
        signing_key=key,
    )
    package = load_package(tmp_path / "package", tmp_path / "in", {"research": key.public_key()})
    assert (package.sha256, package.card.task) == (made.package_sha256, ANOMALY_2D)
    assert package.card.output.segments == (DEVIATION,)
    found = package.card.threshold
    assert found is not None
    residuals = predict(TASK, weights, SITE.validation.x)
    healthy = ~SITE.validation.y.any(axis=(1, 2))
    assert (found.pictures, found.people, found.healthy_share) == (8, 8, 0.98)
    assert found.value == pytest.approx(np.quantile(residuals[healthy], 0.98), rel=1e-6)
    assert (residuals[healthy] > found.value).mean() == pytest.approx(0.02, abs=1e-3)
    answer = ModelSession(package, threads=1).run(SITE.validation.x)
    assert np.allclose(answer[:, 0], residuals, atol=1e-5)


def test_without_a_healthy_held_out_case_there_is_no_package(tmp_path: Path) -> None:
    sick = Dataset(SITE.train, with_spots(SITE.train, 5))
    metrics = evaluate(TASK, initial_weights(TASK), sick).to_json()
    with pytest.raises(ExportError, match="no healthy held-out case"):
        export_package(
            TASK,
            initial_weights(TASK),
            sick.validation,
            tmp_path / "package",
            card=export.model_card(TASK, "1", {}, metrics),
            signing_key=Ed25519PrivateKey.generate(),
        )
    assert not (tmp_path / "package").exists()
    with pytest.raises(ExportError, match="no healthy held-out case"):
        export_onnx(TASK, initial_weights(TASK), sick.validation, tmp_path)


@pytest.mark.parametrize("parity", [Parity(2 * PARITY_LIMIT), Parity(0.0, 2 * PARITY_VOXELS)])
def test_a_model_that_strays_is_not_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parity: Parity
) -> None:
    monkeypatch.setattr(export, "_compare", lambda *_: parity)
    with pytest.raises(ExportError, match="strays"):
        export_onnx(TASK, initial_weights(TASK), SITE.validation, tmp_path, THRESHOLD)


def test_another_model_is_seen_to_stray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = export._answering(TASK, with_weights(TASK, initial_weights(TASK, 9))).eval()
    genuine = export._to_onnx
    monkeypatch.setattr(export, "_to_onnx", lambda _, *rest: genuine(wrong, *rest))
    with pytest.raises(ExportError, match="strays"):
        export_onnx(TASK, initial_weights(TASK), SITE.validation, tmp_path, THRESHOLD)


def test_under_feddis_each_site_exports_the_shared_shape_with_its_own_appearance(tmp_path: Path) -> None:
    task = replace(TASK, local=replace(TASK.local, local_steps=2))
    sites = [healthy_dataset(number, task, gain=1 - 0.6 * number) for number in range(2)]
    shared = simulate(task, {"a": sites[0], "b": sites[1]}, rounds=1, strategy="feddis", seed=1).weights
    for site in sites:
        own = local_round(task, shared, site, strategy="feddis", number=2, seed=1).own
        deployed = site_rule("feddis").deployed(task, shared, own, trained=True)
        parity = export_onnx(task, deployed, site.validation, tmp_path, THRESHOLD)
        assert parity.max_abs <= PARITY_LIMIT
        graph = onnx.load(tmp_path / "model.onnx").graph
        inside = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        kernels = [name for name, array in deployed.items() if array.ndim == 4]
        assert {name.partition(".")[0] for name in kernels} == {"shape", "appearance", "decoder"}
        for name in kernels:
            source = own if name.startswith(APPEARANCE) else shared
            assert np.array_equal(inside[f"network.{name}"], source[name]), name


@pytest.mark.real_data
def test_of_real_slices_served_and_trained_model_agree(tmp_path: Path) -> None:
    task = healthy_task(validation_fraction=0.4, local=replace(TASK.local, local_steps=30))
    generator = np.random.default_rng(0)
    for number, name in enumerate(masked.hippocampus_names()[:10]):
        image = masked.hippocampus(name).image[12:16]
        if number < 8:
            write_healthy(tmp_path, f"P{number}", image)
        else:
            write_sick(tmp_path, f"P{number}", with_anomalies(image, generator))
    dataset = build_masked(read_mask_folder(tmp_path, task).stored, task, None)
    weights = simulate(task, {"a": dataset}, rounds=1, seed=1).weights
    card = export.model_card(task, "1", {}, evaluate(task, weights, dataset).to_json())
    assert card.threshold is not None
    parity = export_onnx(task, weights, dataset.validation, tmp_path, card.threshold)
    assert (predict(task, weights, dataset.validation.x) > card.threshold.value).any()
    assert parity.max_abs <= PARITY_LIMIT
    assert parity.voxels <= PARITY_VOXELS
