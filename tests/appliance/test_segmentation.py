"""A segmentation task in the research zone: cohort, preflight, rounds, the final model; and by command."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from appliance import datasets, preflight, training
from appliance.cli import build
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import (
    CandidateModel,
    Protocol,
    ResearchInstance,
    ResearchJob,
    ResearchLedgerEntry,
    Round,
    Subject,
)
from appliance.federation import preflight_words, protocols, queries
from appliance.ledger import verify
from appliance.work import claimed
from inference.evaluation import read_report
from inference.package import load_package
from inference.session import ModelSession
from tests.appliance.masked_zone import MASKED_TASK, file_masked
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.trainer import masked
from trainer.local_round import evaluate, predict, use_threads
from trainer.measuring import read_metrics
from trainer.networks import initial_weights
from trainer.segmentation.folders import read_mask_folder
from trainer.strategies import check_update
from trainer.weights_io import load

if TYPE_CHECKING:
    from pathlib import Path

use_threads(1)
TASK = MASKED_TASK
COUNT = 8


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    made = make_training_node(tmp_path, count=0, task=TASK)
    folder = made.zone.root / "instances"
    for number in range(COUNT):
        masked.write(folder, f"S{number}", masked.draw(number))
    masked.save(folder / "S8", masked.series(masked.draw(8).image, "S8"))
    file_masked(made.zone, folder)
    return made


def deliver(node: TrainingNode, round_id: str) -> Round:
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def opt_out(node: TrainingNode, pseudonym: str) -> None:
    with writing(node.zone.engine) as session:
        session.execute(update(Subject).where(Subject.pseudonym == pseudonym).values(opted_out=True))


def test_a_round_trains_on_series_with_masks_and_says_which(node: TrainingNode) -> None:
    opt_out(node, "S0")
    row = deliver(node, node.add_round())
    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert row.output_path is not None
    check_update(initial_weights(TASK), load(node.zone.root / row.output_path))
    assert row.cases == {
        "eligible": COUNT + 1,
        "used": COUNT - 1,
        "skipped": {"opted_out": 1, "mask.missing": 1},
    }
    built = datasets.build(node.zone, TASK)
    assert row.dataset_version_id == built.version_id
    assert read_metrics(row.metrics) == evaluate(TASK, initial_weights(TASK), built.dataset)
    assert set(row.metrics) == {"samples", "subjects", "empty", "dice", "segments"}
    with reading(node.zone.engine) as session:
        used = {one.sha256 for one in built.dataset.entries}
        rows = session.execute(
            select(ResearchInstance.sha256, Subject.pseudonym).join(
                Subject, Subject.id == ResearchInstance.subject_id
            )
        ).all()
    assert used == {digest for digest, pseudonym in rows if pseudonym not in {"S0", "S8"}}


def test_the_final_model_is_exported_with_its_dice_and_crosses(node: TrainingNode) -> None:
    row = deliver(node, node.add_round("finalize"))
    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert read_metrics(row.metrics).headline is not None
    with reading(node.zone.engine) as session:
        (candidate,) = session.scalars(select(CandidateModel)).all()
        kinds = session.scalars(select(ResearchLedgerEntry.kind)).all()
    assert training.MODEL_EXPORTED in kinds
    assert candidate.metrics == row.metrics
    assert candidate.parity_max_abs is not None
    assert candidate.parity_max_abs < 1e-5
    spool = node.zone.settings.crossing_in / "packages"
    signers = {"research": node.zone.keys.signing.public_key()}
    package = load_package(spool / "run-1.zip", node.zone.root / "taken", signers)
    assert package.sha256 == candidate.package_sha256
    assert [one.code for one in package.card.output.segments] == ["HIP-ANT", "HIP-POST"]
    report = read_report((spool / "run-1.json").read_bytes(), package.sha256, signers)
    assert report["metrics"] == row.metrics
    assert report["facts"]["parity_voxels"] == 0
    built = datasets.build(node.zone, TASK)
    x = built.dataset.validation.x
    served = ModelSession(package).run(x).argmax(axis=1)
    assert np.array_equal(served, predict(TASK, initial_weights(TASK), x))
    assert verify(node.zone.engine, node.zone.keys.signing.public_key()).ok


def test_the_cohort_is_of_people_with_pictures_and_masks(node: TrainingNode) -> None:
    with reading(node.zone.engine) as session:
        assert protocols.cohort(session, TASK) == COUNT
    opt_out(node, "S1")
    with reading(node.zone.engine) as session:
        assert protocols.cohort(session, TASK) == COUNT - 1
        assert protocols.cohort(session, masked.small_masks_task(modalities=("CT",))) == 0


def spoil(node: TrainingNode) -> None:
    """Give S2 an empty mask, S3 one of another frame of reference, and cut S4's off."""
    drawn = masked.draw(2)
    empty = masked.series(drawn.image, "S2")
    other = masked.series(masked.draw(3).image, "S3")
    foreign = masked.segmentation(other, masked.draw(3).mask)
    foreign.FrameOfReferenceUID = "1.2.3.4"
    cut = masked.series(masked.draw(4).image, "S4")
    short = masked.segmentation(cut, masked.draw(4).mask)
    short.PixelData = short.PixelData[:8]
    folder = node.zone.root / "instances" / "spoilt"
    masked.save(folder, [*empty, masked.segmentation(empty, np.zeros_like(drawn.mask))])
    masked.save(folder, [*other, foreign, *cut, short])
    with writing(node.zone.engine) as session:
        for subject in session.scalars(select(Subject).where(Subject.pseudonym.in_(["S2", "S3", "S4"]))):
            for row in session.scalars(
                select(ResearchInstance).where(ResearchInstance.subject_id == subject.id)
            ):
                session.delete(row)
            session.flush()
            session.delete(subject)
    file_masked(node.zone, folder)


def test_a_preflight_counts_masks_that_are_missing_empty_or_elsewhere(node: TrainingNode) -> None:
    spoil(node)
    job_id = preflight.ask(node.zone, node.protocol_id, "officer")
    with claimed(node.zone.engine, ResearchJob, job_id, "test", 20.0) as claim:
        assert claim is not None
        preflight.run(node.zone, claim)
    with reading(node.zone.engine) as session:
        view = queries.protocol(session, node.zone, node.protocol_id)
    assert view.preflight is not None
    report = view.preflight.report
    assert report["skipped"] == {
        "mask.missing": 1,
        "mask.empty": 1,
        "mask.frame_of_reference": 1,
        "mask.frames": 1,
    }
    assert report["missing"] == {"pictures_without_masks": 1, "masks_without_pictures": 0}
    assert report["segments"] == dict.fromkeys(("HIP-ANT", "HIP-POST"), report["train"]["cases"])
    assert "few_cases_of_a_segment" in report["warnings"]
    assert "one_class_to_train_on" not in report["warnings"]
    told = dict(preflight_words.rows(report))
    assert "1 mask frame of reference" in told["Instances"]
    assert told["Segments"].startswith("HIP-ANT in ")
    assert told["Missing"] == "1 subjects with pictures and no mask, 0 with masks alone"
    assert all(" " in text for text in preflight_words.warnings(report))


def test_a_plan_of_a_segmentation_is_shown_for_approval(node: TrainingNode) -> None:
    with reading(node.zone.engine) as session:
        stored = session.get_one(Protocol, node.protocol_id)
        view = queries.protocol(session, node.zone, stored.id)
    assert (view.label, view.network, view.cohort) == ("boxes", "unet", COUNT)


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    (tmp_path / "task.json").write_text(json.dumps(TASK.to_json()))
    options = [str(tmp_path / "task.json"), "--cache", str(tmp_path / "cache")]
    for number, name in enumerate(("north", "south")):
        for patient in range(5):
            masked.write(tmp_path / name, f"{name}-{patient}", masked.draw(10 * number + patient))
        options += ["--site", f"{name}={tmp_path / name}"]
    return options


def test_a_simulation_reads_folders_with_masks_and_prints_dice(sites: list[str], tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    extra = ["--rounds", "2", "--in-process", "--baselines", "--json"]
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra, str(figures)])
    assert found.exit_code == 0, found.output
    assert "final model: Dice  north 0." in found.output
    assert "pooled: Dice  north 0." in found.output
    told = json.loads(figures.read_text())
    assert told["figure"] == "Dice"
    assert set(told["final"]["north"]["segments"]) == {"HIP-ANT", "HIP-POST"}
    assert told["sites"]["north"]["counts"]["train"] + told["sites"]["north"]["counts"]["validation"] == 5
    again = CliRunner().invoke(build(), ["simulate", *sites, *extra, "-"])
    assert json.loads(again.stdout)["final"] == told["final"]


def test_a_segmentation_takes_no_label_file(sites: list[str], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label,value\n")
    found = CliRunner().invoke(build(), ["simulate", sites[0], "--site", f"a={tmp_path / 'north'},{labels}"])
    assert found.exit_code == 2
    assert "DICOM SEG" in found.output


def test_a_mask_fits_its_series_after_de_identification_as_before(tmp_path: Path) -> None:
    source, released = tmp_path / "in", tmp_path / "out"
    for number in range(2):
        masked.write(source, f"P{number}", masked.draw(number))
    found = CliRunner().invoke(build(), ["deidentify", str(source), str(released)])
    assert found.exit_code == 0, found.output
    before, after = (prepared(folder) for folder in (source, released))
    assert before == after
    assert len(after) == 2


def prepared(folder: Path) -> set[str]:
    """Return a digest of each case, pictures and mask together."""
    from trainer.segmentation.building import build as build_masks  # noqa: PLC0415

    dataset = build_masks(read_mask_folder(folder, TASK).stored, TASK, None)
    return {
        hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        for part in (dataset.train, dataset.validation)
        for x, y in zip(part.x, part.y, strict=True)
    }
