"""A preflight looks at the real cohort by the task's own preprocessing, in the research worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select

from appliance import preflight, training
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import (
    DatasetVersion,
    Label,
    Protocol,
    ProtocolState,
    ResearchInstance,
    ResearchJob,
    ResearchLedgerEntry,
    Round,
    Subject,
)
from appliance.federation import preflight_words, protocols, queries
from appliance.federation.site import SiteService
from appliance.work import claimed
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.trainer.samples import dicom_picture, picture, write_case
from trainer.local_round import use_threads

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.federation.views import PreflightView

use_threads(1)


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    return make_training_node(tmp_path)


def worked(node: TrainingNode) -> PreflightView:
    """Ask for a preflight and do its work as the task does; return what people see."""
    job_id = preflight.ask(node.zone, node.protocol_id, "officer")
    with claimed(node.zone.engine, ResearchJob, job_id, "test", 20.0) as claim:
        assert claim is not None
        preflight.run(node.zone, claim)
    with reading(node.zone.engine) as session:
        found = queries.protocol(session, node.zone, node.protocol_id).preflight
    assert found is not None
    return found


def spoil(node: TrainingNode) -> None:
    """Make some of the cohort bad, each instance in another way."""
    with writing(node.zone.engine) as session:
        rows = session.scalars(select(ResearchInstance).order_by(ResearchInstance.path)).all()
        (node.zone.root / rows[0].path).unlink()
        (node.zone.root / rows[1].path).write_bytes(b"garbage")
        rows[2].modality = "MR"
        labels = session.scalars(select(Label)).all()
        names = {row.id: row.pseudonym for row in session.scalars(select(Subject))}
        of = {label.pseudonym: label for label in labels}
        session.delete(of[names[rows[3].subject_id]])
        session.get_one(Subject, rows[4].subject_id).opted_out = True
        session.add(Label(pseudonym="nobody here", name="blob", value=1, source="csv"))


def test_a_person_asks_for_a_preflight_before_anything_is_approved(node: TrainingNode) -> None:
    with writing(node.zone.engine) as session:
        session.get_one(Protocol, node.protocol_id).state = ProtocolState.PENDING
    spoil(node)

    found = worked(node)

    report = found.report
    assert (found.state, report["eligible"], report["used"]) == ("done", 23, 19)
    assert report["skipped"] == {"missing": 1, "hash_mismatch": 1, "unlabelled": 1, "opted_out": 1}
    assert report["missing"] == {"labelled_without_pictures": 1, "labelled_of_other_modality": 1}
    assert report["train"]["cases"] + report["held_out"]["cases"] == 19
    assert report["timing"]["round_seconds"] > 0
    with reading(node.zone.engine) as session:
        assert session.scalars(select(DatasetVersion)).all() == []
        assert session.scalars(select(Round)).all() == []


def test_what_is_stored_names_no_person_and_no_instance(node: TrainingNode) -> None:
    text = json.dumps(worked(node).report)

    with reading(node.zone.engine) as session:
        names = [row.pseudonym for row in session.scalars(select(Subject))]
        hashes = [row.sha256 for row in session.scalars(select(ResearchInstance))]
        entries = [row for row in session.scalars(select(ResearchLedgerEntry)) if "preflight" in row.kind]
    assert not [word for word in (*names, *hashes) if word in text]
    assert (entries[0].kind, entries[0].actor) == ("preflight.asked", "officer")
    assert set(json.loads(entries[1].body)) == {"preflight_id", "eligible", "used"}


def test_asked_twice_one_preflight_waits_and_a_new_one_replaces_what_is_shown(node: TrainingNode) -> None:
    first = preflight.ask(node.zone, node.protocol_id, "officer")
    assert preflight.ask(node.zone, node.protocol_id, "officer") == first
    before = worked(node)
    spoil(node)

    after = worked(node)

    assert (before.report["used"], after.report["used"]) == (24, 20)  # the garbled one was prepared before


def test_a_plan_whose_network_cannot_be_built_has_no_preflight_but_a_reason(node: TrainingNode) -> None:
    content = node.plan.to_json()
    content["task"] = {**content["task"], "network": {"name": "no-such-network", "parameters": {}}}
    with writing(node.zone.engine) as session:
        session.get_one(Protocol, node.protocol_id).plan = content

    found = worked(node)

    assert (found.state, found.report) == ("dead", {})
    assert found.reason


def test_every_warning_has_words_and_the_report_reads_well(node: TrainingNode) -> None:
    report = worked(node).report
    rows = dict(preflight_words.rows(report))

    assert rows["Instances"] == "24 used of 24 eligible; left out: none"
    assert "rounds" in rows["Time"]
    assert preflight_words.warnings({"warnings": ["cohort_too_small"]}) == [
        "fewer subjects than are needed here"
    ]


def test_a_round_says_what_it_used_and_what_it_skipped_and_so_does_its_receipt(node: TrainingNode) -> None:
    spoil(node)
    round_id = node.add_round()
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    expected = {"missing": 1, "hash_mismatch": 1, "unlabelled": 1, "opted_out": 1}

    with reading(node.zone.engine) as session:
        [run] = queries.list_runs(session)
        hours = protocols.hours(session, session.get_one(Protocol, node.protocol_id))
    _, signed = SiteService(node.zone).release(round_id)

    assert run.rounds[0].state == WorkState.DONE
    assert run.rounds[0].cases == {"eligible": 23, "used": 19, "skipped": expected}
    assert (signed.body["eligible"], signed.body["used"], signed.body["skipped"]) == (23, 19, expected)
    assert hours > 0


BAD_STUDIES: dict[str, dict[str, Any]] = {
    "nan slope": {"RescaleSlope": "nan", "RescaleIntercept": "0"},
    "infinite slope": {"RescaleSlope": "inf", "RescaleIntercept": "0"},
    "too many frames": {"NumberOfFrames": "4000000000"},
    "huge": {"Rows": 65535, "Columns": 65535},
    "cut off": {"PixelData": b"xx"},
    "odd bits": {"BitsAllocated": 7},
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_bad_studies_are_skipped_with_their_reasons_and_end_no_round(node: TrainingNode) -> None:
    generator = np.random.default_rng(5)
    with writing(node.zone.engine) as session:
        rows = session.scalars(select(ResearchInstance).order_by(ResearchInstance.path)).all()
        for row, changes in zip(rows, BAD_STUDIES.values(), strict=False):
            bad = write_case(node.zone.root, dicom_picture(picture(generator, 1), "P", **changes), 1)
            row.path, row.sha256 = bad.path.name, bad.sha256
    round_id = node.add_round()

    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)

    with reading(node.zone.engine) as session:
        done = session.get_one(Round, round_id)
    assert (done.state, done.cases["used"]) == (WorkState.DONE, 24 - len(BAD_STUDIES))
    assert sum(done.cases["skipped"].values()) == len(BAD_STUDIES)
    assert all(reason.startswith("pixel.") for reason in done.cases["skipped"])
