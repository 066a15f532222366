"""An anomaly task in the research zone: cohort, preflight, rounds, model package; FedDis by command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import datasets, preflight, sitestate
from appliance.cli import build
from appliance.db.base import WorkState
from appliance.db.engine import reading
from appliance.db.research import CandidateModel, ResearchJob
from appliance.federation import preflight_words, protocols, queries
from appliance.work import claimed
from inference.evaluation import read_report
from inference.package import load_package
from tests.appliance.masked_zone import file_masked
from tests.appliance.test_segmentation import deliver, opt_out
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.trainer import masked
from tests.trainer.healthy import healthy_task, with_anomalies, write_healthy, write_sick
from trainer import strategies
from trainer.anomaly import APPEARANCE
from trainer.anomaly.measures import AnomalyMetrics
from trainer.export import PARITY_LIMIT, PARITY_VOXELS
from trainer.federation.plan import Strategy
from trainer.local_round import evaluate, use_threads
from trainer.measuring import read_metrics
from trainer.networks import initial_weights
from trainer.weights_io import load

if TYPE_CHECKING:
    from pathlib import Path

    from inference.package import Package

use_threads(1)
TASK = healthy_task(validation_fraction=0.4)
HEALTHY = 8
SLICES = 4


def fill(folder: Path, name: str, seed: int = 0) -> None:
    """Write people without anomalies, and two with."""
    for number in range(HEALTHY):
        write_healthy(folder, f"{name}{number}", masked.draw(seed + number).image[:SLICES])
    for number in (HEALTHY, HEALTHY + 1):
        image = masked.draw(seed + number).image[:SLICES]
        write_sick(folder, f"{name}{number}", with_anomalies(image, np.random.default_rng(number)))


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    made = make_training_node(tmp_path, count=0, task=TASK)
    fill(made.zone.root / "instances", "S")
    file_masked(made.zone, made.zone.root / "instances")
    return made


def test_a_round_trains_on_people_without_anomalies_and_says_which(node: TrainingNode) -> None:
    opt_out(node, "S0")
    row = deliver(node, node.add_round())
    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert row.cases == {
        "eligible": SLICES * (HEALTHY + 2),
        "used": SLICES * (HEALTHY + 1),
        "skipped": {"opted_out": SLICES},
    }
    built = datasets.build(node.zone, TASK)
    assert row.dataset_version_id == built.version_id
    assert built.dataset.counts["train_positive"] == 0
    assert built.dataset.counts["validation_positive"] == 2 * SLICES
    found = read_metrics(row.metrics)
    assert found == evaluate(TASK, initial_weights(TASK), built.dataset)
    assert found.headline is not None


def taken_in(node: TrainingNode, zipped: Path) -> Package:
    """Take a package in as the clinical zone does."""
    signers = {"research": node.zone.keys.signing.public_key()}
    return load_package(zipped, node.zone.root / "taken", signers)


def test_the_final_model_is_measured_packaged_and_crosses_with_its_report(node: TrainingNode) -> None:
    row = deliver(node, node.add_round("finalize"))
    assert (row.state, row.reason) == (WorkState.DONE, None)
    metrics = read_metrics(row.metrics)
    assert isinstance(metrics, AnomalyMetrics)
    assert metrics.headline is not None
    spool = node.zone.settings.crossing_in / "packages"
    package = taken_in(node, spool / f"{node.plan.run_id}.zip")
    with reading(node.zone.engine) as session:
        candidate = session.scalars(select(CandidateModel)).one()
    assert package.sha256 == candidate.package_sha256
    assert candidate.metrics == row.metrics
    threshold = package.card.threshold
    assert threshold is not None
    assert (threshold.value, threshold.healthy_share) == (metrics.threshold, 0.98)
    assert (threshold.pictures, threshold.people) == (metrics.healthy, metrics.healthy_subjects)
    assert threshold.people == metrics.subjects - 2, "who has an anomaly gives nothing to it"
    content = (spool / f"{node.plan.run_id}.json").read_bytes()
    report = read_report(content, package.sha256, {"research": node.zone.keys.signing.public_key()})
    assert report["metrics"]["dice"] == row.metrics["dice"]
    assert 0 <= report["facts"]["parity_max_abs"] <= PARITY_LIMIT
    assert 0 <= report["facts"]["parity_voxels"] <= PARITY_VOXELS
    assert "this_site_s_own" not in report["facts"]["federation"]


def test_a_site_without_healthy_held_out_people_makes_no_package_and_says_why(tmp_path: Path) -> None:
    node = make_training_node(tmp_path, count=0, task=TASK)
    folder = node.zone.root / "instances"
    for number in range(2):
        image = masked.draw(number).image[:SLICES]
        write_sick(folder, f"S{number}", with_anomalies(image, np.random.default_rng(number)))
    file_masked(node.zone, folder)
    row = deliver(node, node.add_round("finalize"))
    assert row.state == WorkState.DEAD
    assert row.reason is not None
    assert "no healthy held-out case" in row.reason
    assert not list((node.zone.settings.crossing_in / "packages").iterdir())


def test_under_feddis_the_package_has_the_site_s_own_appearance_and_says_so(tmp_path: Path) -> None:
    node = make_training_node(tmp_path, count=0, task=TASK, strategy=Strategy("feddis", {}))
    fill(node.zone.root / "instances", "S")
    file_masked(node.zone, node.zone.root / "instances")
    shared = strategies.get("feddis").prepared(initial_weights(TASK))
    trained = deliver(node, node.add_round(weights=shared))
    assert trained.state == WorkState.DONE, trained.reason
    row = deliver(node, node.add_round("finalize", number=2, weights=shared))
    assert (row.state, row.reason) == (WorkState.DONE, None)
    package = taken_in(node, node.zone.settings.crossing_in / "packages" / f"{node.plan.run_id}.zip")
    assert package.card.provenance["federation"]["this_site_s_own"] == "appearance encoder"
    with reading(node.zone.engine) as session:
        own = sitestate.load(session, node.zone.root, row)
    content = onnx.load(package.model_path).graph.initializer
    inside = {one.name: onnx.numpy_helper.to_array(one) for one in content}
    kernels = [name for name, array in own.items() if name.startswith(APPEARANCE) and array.ndim == 4]
    assert kernels
    for name in kernels:
        assert np.array_equal(inside[f"network.{name}"], own[name])
        assert not np.array_equal(own[name], initial_weights(TASK)[name])
    assert np.array_equal(inside["network.shape.0.weight"], shared["shape.0.weight"])


def test_the_cohort_is_of_everybody_with_pictures(node: TrainingNode) -> None:
    opt_out(node, "S1")
    with reading(node.zone.engine) as session:
        assert protocols.cohort(session, TASK) == HEALTHY + 1
        assert protocols.cohort(session, healthy_task(modalities=("CT",))) == 0


def test_a_preflight_counts_healthy_people_and_those_with_anomalies(node: TrainingNode) -> None:
    job_id = preflight.ask(node.zone, node.protocol_id, "officer")
    with claimed(node.zone.engine, ResearchJob, job_id, "test", 20.0) as claim:
        assert claim is not None
        preflight.run(node.zone, claim)
    with reading(node.zone.engine) as session:
        view = queries.protocol(session, node.zone, node.protocol_id)
    assert view.preflight is not None
    report = view.preflight.report
    assert report["missing"] == {"subjects_with_masks": 2}
    assert (report["train"]["positive"], report["held_out"]["positive"]) == (0, 2 * SLICES)
    assert not {"one_class_to_train_on", "nothing_marked_in_held_out"} & set(report["warnings"])
    told = dict(preflight_words.rows(report))
    assert "with something marked" in told["Held out"]
    assert told["Missing"] == "2 subjects with masks; all others are taken to be healthy"
    assert all(" " in text for text in preflight_words.warnings(report))


def test_a_simulation_of_feddis_reads_folders_and_prints_dice(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(TASK.to_json()))
    command = ["simulate", str(tmp_path / "task.json"), "--cache", str(tmp_path / "cache")]
    for number, name in enumerate(("north", "south")):
        fill(tmp_path / name, name, 20 * number)
        command += ["--site", f"{name}={tmp_path / name}"]
    out = tmp_path / "model.safetensors"
    extra = ["--strategy", "feddis", "--rounds", "2", "--in-process", "--out", str(out), "--baselines"]
    found = CliRunner().invoke(build(), [*command, *extra, "--json", str(tmp_path / "figures.json")])
    assert found.exit_code == 0, found.output
    assert "final model: Dice  north 0." in found.output
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["final"]["south"]["anomalous"] == 2 * SLICES
    assert 0 < told["final"]["south"]["average_precision"]["estimate"] <= 1
    assert load(out).keys() == {name for name in initial_weights(TASK) if not name.startswith(APPEARANCE)}
