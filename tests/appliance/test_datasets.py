from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from appliance import datasets
from appliance.db.engine import reading, writing
from appliance.db.research import DatasetVersion, Label, ResearchInstance, ResearchLedgerEntry, Subject
from tests.appliance.training_node import TrainingNode, add_cases, make_training_node

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    return make_training_node(tmp_path, count=12)


def test_a_dataset_version_lists_every_case_by_hash_and_is_recorded_once(node: TrainingNode) -> None:
    first = datasets.build(node.zone, node.plan.task)
    second = datasets.build(node.zone, node.plan.task)
    assert first.version_id == second.version_id
    with reading(node.zone.engine) as session:
        version = session.get_one(DatasetVersion, first.version_id)
        entries = session.scalars(
            select(ResearchLedgerEntry).where(ResearchLedgerEntry.kind == datasets.DATASET_BUILT)
        ).all()
        hashes = set(session.scalars(select(ResearchInstance.sha256)))
    assert [entry.subject_id for entry in entries] == [version.id]
    assert version.counts["train"] + version.counts["validation"] == 12
    assert version.label_name == "blob"
    content = (node.zone.root / version.path).read_text()
    assert {json.loads(line)[0] for line in content.splitlines()} == hashes
    assert "P0-" not in content
    assert version.content_sha256 == first.dataset.content_sha256


def test_who_opted_out_is_in_no_later_dataset(node: TrainingNode) -> None:
    before = datasets.build(node.zone, node.plan.task)
    with writing(node.zone.engine) as session:
        session.execute(update(Subject).where(Subject.pseudonym == "P0-3").values(opted_out=True))
        gone = session.scalar(
            select(ResearchInstance.sha256).join(Subject).where(Subject.pseudonym == "P0-3")
        )
    assert gone is not None
    after = datasets.build(node.zone, node.plan.task)
    assert after.version_id != before.version_id
    assert gone in before.dataset.content
    assert gone not in after.dataset.content
    assert "P0-3" not in (*after.dataset.train.pseudonyms, *after.dataset.validation.pseudonyms)
    assert datasets.select_cases(node.zone, node.plan.task).skipped == {"opted_out": 1}


def test_new_patients_make_a_new_version_and_leave_the_others_where_they_were(node: TrainingNode) -> None:
    before = datasets.build(node.zone, node.plan.task).dataset
    add_cases(node.zone, 6, seed=5)
    after = datasets.build(node.zone, node.plan.task).dataset
    assert set(before.train.pseudonyms) <= set(after.train.pseudonyms)
    assert set(before.validation.pseudonyms) <= set(after.validation.pseudonyms)
    assert len(after.train) + len(after.validation) == 18
    with reading(node.zone.engine) as session:
        assert session.scalar(select(func.count()).select_from(DatasetVersion)) == 2


def test_a_study_s_own_label_counts_before_its_subject_s_and_disagreement_leaves_it_out(
    node: TrainingNode,
) -> None:
    with writing(node.zone.engine) as session:
        session.add(
            Label(pseudonym="P0-0", study_instance_uid="2.25.00", name="blob", value=1, source="reader")
        )
        session.add(Label(pseudonym="P0-1", name="blob", value=0, source="reader"))  # csv says 1
        session.add(Label(pseudonym="P0-2", name="blob", value=0, source="reader"))  # csv says so too
        session.execute(update(Label).where(Label.pseudonym == "P0-4").values(name="other"))
    selection = datasets.select_cases(node.zone, node.plan.task)
    labels = {case.pseudonym: case.label for case in selection.cases}
    assert labels["P0-0"] == 1
    assert labels["P0-2"] == 0
    assert "P0-1" not in labels
    assert selection.skipped == {"label_conflict": 1, "unlabelled": 1}


def test_a_file_that_was_changed_after_filing_is_not_used(node: TrainingNode) -> None:
    with reading(node.zone.engine) as session:
        path = session.scalars(select(ResearchInstance.path)).first()
    assert path is not None
    with (node.zone.root / path).open("ab") as stream:
        stream.write(b"\0")
    built = datasets.build(node.zone, node.plan.task)
    assert dict(built.dataset.skipped) == {"hash_mismatch": 1}
