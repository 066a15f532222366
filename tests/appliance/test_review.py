"""Review: an item is tried out, decided for an instance, a series or a machine, and leaves as decided."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from sqlalchemy import select

from anonymizer.boxes import Box
from anonymizer.verdicts import DRAWN, Verdict
from appliance import crossing, quarantine, retention
from appliance.db.base import WorkState, now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Decision,
    DecisionState,
    QuarantineItem,
    StudyRevision,
)
from appliance.db.engine import reading, writing
from appliance.erasing import erase
from appliance.evidence import gathering, packing
from appliance.review import decisions, folders
from appliance.review.decisions import DecisionError, Desk
from appliance.review.scopes import MACHINE
from appliance.work import claimed
from tests.anonymizer.material import ct
from tests.anonymizer.node import Node, make_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOX = Box(4, 2, 60, 10, DRAWN)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def screen(study: str = "1.2.840.99999.5", **changes: object) -> Dataset:
    """Return a CT image that says of itself that text is burnt into it, and has some."""
    ds = ct(rows=64, columns=64)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, f"{study}.1", generate_uid(None)
    ds.BurnedInAnnotation = "YES"
    ds.PixelData = (np.indices((64, 64)).sum(axis=0) * 20).astype("<u2").tobytes()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def stopped(node: Node, *instances: Dataset) -> tuple[str, list[str]]:
    """Release a study that stays inside; return its revision and the ids of the items."""
    revision_id = node.add_study(instances)
    node.release(revision_id)
    with reading(node.clinical.engine) as session:
        study_id = session.get_one(StudyRevision, revision_id).study_id
        ids = session.scalars(
            select(QuarantineItem.id).where(QuarantineItem.study_id == study_id).order_by(QuarantineItem.id)
        ).all()
    return revision_id, list(ids)


def at_desk(node: Node, run: Callable[[Desk], Any], actor: str = "a" * 32, *, four_eyes: bool = False) -> Any:
    with writing(node.clinical.engine) as session:
        return run(Desk(session, node.clinical.ledger, actor, four_eyes))


def tried(node: Node, item_id: str, verdict: Verdict = Verdict(boxes=(BOX,))) -> str:  # noqa: B008
    """Draft a verdict and try it out; return the decision's id."""
    job_id = at_desk(node, lambda desk: decisions.draft(desk, item_id, verdict))
    job = node.run(job_id)
    assert job.state == WorkState.DONE
    return job.subject_id


def row(node: Node, decision_id: str) -> Decision:
    with reading(node.clinical.engine) as session:
        return session.get_one(Decision, decision_id)


def item(node: Node, item_id: str) -> QuarantineItem:
    with reading(node.clinical.engine) as session:
        return session.get_one(QuarantineItem, item_id)


def entries(node: Node, kind: str) -> list[dict[str, Any]]:
    with reading(node.clinical.engine) as session:
        rows = session.scalars(select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == kind))
        return [json.loads(found.body) for found in rows]


def released(node: Node) -> dict[str, list[Dataset]]:
    """Return what lies in the spool, by bundle."""
    return {
        bundle.id: [dcmread(bundle.folder / one.file) for one in bundle.items if hasattr(one, "file")]
        for bundle in crossing.read_bundles(node.settings)
    }


def test_a_trial_shows_what_would_leave_and_nothing_leaves_by_it(node: Node) -> None:
    _, [item_id] = stopped(node, screen())
    found = row(node, tried(node, item_id))
    assert (found.state, found.trial["outcome"], found.trial["frames"]) == (
        DecisionState.DRAFTED,
        "released",
        [0],
    )
    assert found.verdict["accepted"] == ["burned_in_annotation"]
    assert [4, 2, 60, 10, DRAWN, []] in found.trial["boxes"]
    assert released(node) == {}
    before, after = (
        folders.picture_of(node.clinical.root, found.study_id, found.id, f"{side}-0")
        for side in ("before", "after")
    )
    assert before is not None
    assert after is not None
    old, new = (np.asarray(Image.open(io.BytesIO(picture))) for picture in (before, after))
    assert old.shape == new.shape == (64, 64)
    assert len(np.unique(new[2:10, 4:60])) == 1 < len(np.unique(old[2:10, 4:60]))
    lines = {
        line["keyword"]: line for line in folders.header_of(node.clinical.root, found.study_id, found.id)
    }
    assert lines["PatientID"]["before"] == "MRN-4711-X"
    assert lines["PatientID"]["change"] == "changed"
    assert lines["AccessionNumber"]["after"] == ""
    assert not list((node.clinical.root / "reviews").rglob("*.dcm"))
    assert "MRN-4711" not in json.dumps(found.trial)


def test_what_was_shown_leaves_as_it_was_shown(node: Node) -> None:
    revision_id, [item_id] = stopped(node, screen())
    decision_id = tried(node, item_id)
    jobs = at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1))
    assert item(node, item_id).resolution == quarantine.RELEASING
    for job_id in jobs:
        assert node.run(job_id).state == WorkState.DONE
    closed = item(node, item_id)
    assert (closed.resolution, closed.resolved_at is not None) == (quarantine.RELEASED, True)
    [[out]] = released(node).values()
    assert len(np.unique(out.pixel_array[2:10, 4:60])) == 1
    assert out.BurnedInAnnotation == "NO"
    with reading(node.clinical.engine) as session:
        revision = session.get_one(StudyRevision, revision_id)
    assert (revision.deidentification_state, revision.released_count) == ("released", 1)
    [made] = entries(node, decisions.MADE)
    assert (made["outcome"], made["scope"], made["boxes"], made["items"]) == ("release", "instance", 1, 1)
    assert entries(node, "study.deidentified")[-1]["decisions"] == [decision_id]


def test_a_series_leaves_by_one_decision_and_what_follows_in_it_too(node: Node) -> None:
    revision_id, item_ids = stopped(node, screen(), screen(), screen())
    decision_id = tried(node, item_ids[0])
    [job_id] = at_desk(node, lambda desk: decisions.decide(desk, decision_id, "series", 1))
    assert {item(node, one).resolution for one in item_ids} == {quarantine.RELEASING}
    node.run(job_id)
    assert {item(node, one).resolution for one in item_ids} == {quarantine.RELEASED}
    late = screen()
    node.add_late(revision_id, late)
    with writing(node.clinical.engine) as session:
        first = session.get_one(StudyRevision, revision_id)
        second = StudyRevision(study_id=first.study_id, number=2, instance_count=4)
        session.add(second)
        session.flush()
        second_id = second.id
    node.release(second_id)
    assert sorted(len(instances) for instances in released(node).values()) == [3, 4]


def test_a_decision_on_a_machine_holds_for_its_other_patients_and_for_no_other_machine(node: Node) -> None:
    _, [first] = stopped(node, screen("1.2.840.99999.6"))
    _, [second] = stopped(node, screen("1.2.840.99999.7", PatientID="OTHER"))
    _, [third] = stopped(node, screen("1.2.840.99999.8", ManufacturerModelName="Model 2"))
    decision_id = tried(node, first)
    jobs = at_desk(node, lambda desk: decisions.decide(desk, decision_id, MACHINE, 1))
    assert len(jobs) == 2
    assert item(node, third).resolution == ""
    for job_id in jobs:
        node.run(job_id)
    assert item(node, second).resolution == quarantine.RELEASED
    assert stopped(node, screen("1.2.840.99999.9"))[1] == []
    assert len(released(node)) == 3
    at_desk(node, lambda desk: decisions.withdraw(desk, decision_id))
    assert len(stopped(node, screen("1.2.840.99999.10"))[1]) == 1
    assert row(node, decision_id).state == DecisionState.WITHDRAWN


def test_two_people_are_needed_where_it_is_set(node: Node) -> None:
    _, [item_id] = stopped(node, screen())
    decision_id = tried(node, item_id)
    assert (
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1), four_eyes=True) == []
    )
    assert (row(node, decision_id).state, item(node, item_id).resolution) == ("proposed", "proposed")
    with pytest.raises(DecisionError, match="second person"):
        at_desk(node, lambda desk: decisions.confirm(desk, decision_id))
    with pytest.raises(DecisionError, match="decided already"):
        at_desk(node, lambda desk: decisions.draft(desk, item_id, Verdict()))
    [job_id] = at_desk(node, lambda desk: decisions.confirm(desk, decision_id), actor="b" * 32)
    node.run(job_id)
    assert item(node, item_id).resolution == quarantine.RELEASED
    found = row(node, decision_id)
    assert (found.decided_by, found.confirmed_by) == ("a" * 32, "b" * 32)
    assert len(entries(node, decisions.DECISION_PROPOSED)) == len(entries(node, decisions.CONFIRMED)) == 1


def test_the_evidence_says_what_people_decided(node: Node, tmp_path: Path) -> None:
    _, [item_id] = stopped(node, screen())
    decision_id = tried(node, item_id)
    assert gathering.gather(node.clinical, 1)["decisions"] == []
    at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1), four_eyes=True)
    facts = gathering.gather(node.clinical, 1)
    assert facts["counts"]["quarantine_open"] == 1
    [listed] = facts["decisions"]
    assert (listed["decision"], listed["outcome"], listed["state"], listed["boxes"]) == (
        decision_id,
        "release",
        "proposed",
        1,
    )
    packing.write(tmp_path / "pack", facts, node.clinical.keys.signing)
    assert (tmp_path / "pack" / packing.DOCUMENT).read_bytes().startswith(b"%PDF-")


def test_a_proposal_that_is_refused_leaves_the_item_open(node: Node) -> None:
    _, [item_id] = stopped(node, screen())
    decision_id = tried(node, item_id)
    at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1), four_eyes=True)
    at_desk(node, lambda desk: decisions.refuse(desk, decision_id), actor="b" * 32)
    assert (row(node, decision_id).state, item(node, item_id).resolution) == ("refused", "")
    with pytest.raises(DecisionError, match="proposed"):
        at_desk(node, lambda desk: decisions.confirm(desk, decision_id), actor="b" * 32)
    assert released(node) == {}


def test_what_stays_inside_for_a_machine_asks_nobody_again(node: Node) -> None:
    _, [first] = stopped(node, screen("1.2.840.99999.6"))
    assert at_desk(node, lambda desk: decisions.keep(desk, first, MACHINE)) == 1
    assert item(node, first).resolution == quarantine.SEEN
    _, [second] = stopped(node, screen("1.2.840.99999.7"))
    assert (item(node, second).resolution, released(node)) == (quarantine.SEEN, {})


def test_nothing_leaves_that_was_not_shown_to_leave(node: Node) -> None:
    refused = screen()
    del refused.PatientID
    _, [item_id] = stopped(node, refused)
    decision_id = tried(node, item_id)
    found = row(node, decision_id)
    assert (found.trial["outcome"], found.trial["reason_code"]) == ("stopped", "unusable_patient_id")
    with pytest.raises(DecisionError, match="not shown to leave"):
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1))


def test_a_later_draft_takes_the_place_of_what_was_tried(node: Node) -> None:
    _, [item_id] = stopped(node, screen())
    first = tried(node, item_id)
    job_id = at_desk(node, lambda desk: decisions.draft(desk, item_id, Verdict()))
    with pytest.raises(DecisionError, match="not shown to leave"):
        at_desk(node, lambda desk: decisions.decide(desk, first, "instance", 1))
    node.run(job_id)
    assert row(node, first).trial["outcome"] == "released"
    assert row(node, first).verdict["boxes"] == []


@pytest.mark.parametrize(
    ("scope", "changes", "words"),
    [
        ("everything", {}, "scope"),
        (MACHINE, {"ManufacturerModelName": ""}, "manufacturer and model"),
    ],
    ids=["unknown", "nameless machine"],
)
def test_a_scope_that_does_not_fit_is_refused(
    node: Node, scope: str, changes: dict[str, str], words: str
) -> None:
    _, [item_id] = stopped(node, screen(**changes))
    decision_id = tried(node, item_id)
    with pytest.raises(DecisionError, match=words):
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, scope, 1))
    with pytest.raises(DecisionError, match=words):
        at_desk(node, lambda desk: decisions.keep(desk, item_id, scope))


def test_residue_that_a_person_lets_go_is_gone_and_the_rest_leaves(node: Node) -> None:
    ds = screen(PatientName="Vendori^Anna", Manufacturer="Vendorius", BurnedInAnnotation="NO")
    _, [item_id] = stopped(node, ds)
    assert item(node, item_id).reason_code == "residual_identifier"
    found = row(node, tried(node, item_id, Verdict()))
    assert (found.trial["outcome"], found.trial["places"]) == ("stopped", ["(0008,0070)"])
    decision_id = tried(node, item_id, Verdict(removed=frozenset({"(0008,0070)"})))
    with pytest.raises(DecisionError, match="drafted anew"):
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1))
    [job_id] = at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 2))
    node.run(job_id)
    [[out]] = released(node).values()
    assert out.Manufacturer == ""
    assert entries(node, decisions.MADE)[0]["removed"] == ["tag.00080070"]


@pytest.mark.parametrize(
    ("keyword", "tag", "allowed"),
    [("Manufacturer", "(0008,0070)", True), ("SoftwareVersions", "(0018,1020)", False)],
    ids=["of the machine", "of this instance"],
)
def test_what_stands_here_stands_elsewhere_only_where_the_machine_says_it(
    node: Node, keyword: str, tag: str, *, allowed: bool
) -> None:
    ds = screen(PatientName="Vendori^Anna", BurnedInAnnotation="NO", **{keyword: "Vendorius"})
    _, [item_id] = stopped(node, ds)
    decision_id = tried(node, item_id, Verdict(standing=frozenset({tag})))
    assert row(node, decision_id).trial["outcome"] == "released"
    if allowed:
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, MACHINE, 1))
        return
    with pytest.raises(DecisionError, match="decide for the instance"):
        at_desk(node, lambda desk: decisions.decide(desk, decision_id, MACHINE, 1))
    at_desk(node, lambda desk: decisions.decide(desk, decision_id, "instance", 1))


def test_trials_go_with_their_study_and_when_they_are_decided(node: Node) -> None:
    _, [first] = stopped(node, screen("1.2.840.99999.6"))
    _, [second] = stopped(node, screen("1.2.840.99999.7"))
    kept, decided = tried(node, first), tried(node, second)
    at_desk(node, lambda desk: decisions.decide(desk, decided, "instance", 1))
    assert folders.sweep(node.clinical) == 1
    study_id = row(node, kept).study_id
    assert study_id is not None
    assert folders.header_of(node.clinical.root, study_id, kept)
    with writing(node.clinical.engine) as session:
        job_id = retention.delete_rows(node.clinical, session, study_id, {}, actor="test")
    with claimed(node.clinical.engine, ClinicalJob, job_id, "test", 60) as claim:
        assert claim is not None
        erase(node.clinical, claim)
    assert not (node.clinical.root / "reviews" / study_id).exists()
    assert row(node, kept).study_id is None


def test_a_draft_that_nobody_decided_goes_after_a_week(node: Node) -> None:
    _, [item_id] = stopped(node, screen())
    decision_id = tried(node, item_id)
    with writing(node.clinical.engine) as session:
        session.get_one(Decision, decision_id).created_at = now() - 2 * folders.DRAFTS_FOR
    assert folders.sweep(node.clinical) == 1
    with reading(node.clinical.engine) as session:
        assert session.get(Decision, decision_id) is None
    assert item(node, item_id).resolution == ""
