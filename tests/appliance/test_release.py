from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from sqlalchemy import func, select

import appliance.release
from anonymizer import vault
from anonymizer.engine import deidentify_file
from anonymizer.uids import well_known
from appliance import crossing, merges
from appliance.crossing import BundleWriter, InstanceItem
from appliance.db.base import WorkState, new_id, now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, QuarantineItem, StudyRevision, VaultEntry
from appliance.db.engine import reading, writing
from appliance.release import release_study
from appliance.vault import vault_context
from appliance.work import claimed
from tests.anonymizer.node import Node, make_node, study_of
from tests.anonymizer.residue import find_residue, identifiers_of
from tests.appliance.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from anonymizer.engine import Quarantined, Released


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def _count(node: Node, model: type) -> int:
    with reading(node.clinical.engine) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def _entries(node: Node, kind: str) -> list[dict[str, object]]:
    with reading(node.clinical.engine) as session:
        rows = session.scalars(select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == kind))
        return [json.loads(row.body) for row in rows]


def _revision(node: Node, revision_id: str) -> StudyRevision:
    with reading(node.clinical.engine) as session:
        return session.get_one(StudyRevision, revision_id)


def test_a_study_crosses_deidentified_and_the_vault_knows_who_it_was(node: Node) -> None:
    originals = study_of(3)
    revision_id = node.add_study(originals)
    assert node.release(revision_id).state == WorkState.DONE
    [bundle] = crossing.read_bundles(node.settings)
    assert (bundle.kind, bundle.project, len(bundle.items)) == ("instances", "trial", 3)
    for item in bundle.items:
        assert isinstance(item, InstanceItem)
        path = bundle.folder / item.file
        assert dcmread(path).PatientID == item.pseudonym
        wanted = [text for ds in originals for text in identifiers_of(ds, known=well_known())]
        assert find_residue(path, wanted) == []
    revision = _revision(node, revision_id)
    assert (revision.deidentification_state, revision.released_count, revision.quarantined_count) == (
        "released",
        3,
        0,
    )
    with reading(node.clinical.engine) as session:
        entry = session.scalars(select(VaultEntry)).one()
    sealed = vault.Sealed(entry.key_id, entry.nonce, entry.ciphertext)
    opened = vault.open(node.clinical.keys.vault, sealed, vault_context("trial", entry.pseudonym))
    assert json.loads(opened) == {"patient_id": "MRN-4711-X", "issuer": ""}
    assert b"MRN-4711-X" not in entry.ciphertext.encode()


def test_nothing_in_a_bundle_names_the_original(node: Node) -> None:
    node.release(node.add_study(study_of(1)))
    [bundle] = crossing.read_bundles(node.settings)
    manifest = (bundle.folder / "bundle.json").read_text()
    for secret in ("MRN-4711", "stermann", "1.3.6.1.4.1.99999", "ACC-"):
        assert secret not in manifest


def test_what_cannot_be_judged_waits_and_the_rest_crosses(node: Node) -> None:
    instances = study_of(3)
    instances[1].BurnedInAnnotation = "YES"
    revision_id = node.add_study(instances)
    assert node.release(revision_id).state == WorkState.DONE
    revision = _revision(node, revision_id)
    assert (revision.deidentification_state, revision.released_count, revision.quarantined_count) == (
        "partial",
        2,
        1,
    )
    with reading(node.clinical.engine) as session:
        item = session.scalars(select(QuarantineItem)).one()
    assert (item.stage, item.reason_code, item.calling_ae_title) == (
        "deidentify",
        "burned_in_annotation",
        "MODALITY",
    )
    assert item.reason
    assert (node.clinical.root / str(item.path)).is_file()


def test_a_study_without_a_usable_patient_id_does_not_cross(node: Node) -> None:
    revision_id = node.add_study(study_of(2, patient_id="UNKNOWN"))
    node.release(revision_id)
    assert _revision(node, revision_id).deidentification_state == "quarantined"
    assert node.bundles() == []
    assert (_count(node, VaultEntry), _count(node, QuarantineItem)) == (0, 2)


def test_a_study_that_names_two_patients_does_not_cross(node: Node) -> None:
    instances = [*study_of(2), *study_of(4, patient_id="MRN-0815-Y")[2:]]
    revision_id = node.add_study(instances)
    node.release(revision_id)
    assert _revision(node, revision_id).deidentification_state == "quarantined"
    assert node.bundles() == []
    assert _count(node, VaultEntry) == 0
    with reading(node.clinical.engine) as session:
        assert set(session.scalars(select(QuarantineItem.reason_code))) == {"several_patients"}


def test_a_second_delivery_of_the_job_does_nothing(node: Node) -> None:
    job_id = node.enqueue(node.add_study(study_of(1)))
    node.run(job_id)
    before = node.bundles()
    node.run(job_id)
    assert node.bundles() == before
    assert len(_entries(node, "study.deidentified")) == 1


def test_an_instance_that_came_after_the_revision_belongs_to_the_next_one(node: Node) -> None:
    early, late = study_of(2)
    revision_id = node.add_study([early])
    node.add_late(revision_id, late)
    assert node.release(revision_id).state == "done"
    [bundle] = crossing.read_bundles(node.settings)
    assert len(bundle.items) == 1


def test_a_second_revision_seals_no_second_identity_and_gives_equal_bytes(node: Node) -> None:
    revision_id = node.add_study(study_of(2))
    node.release(revision_id)
    with writing(node.clinical.engine) as session:
        study_id = session.get_one(StudyRevision, revision_id).study_id
        later = StudyRevision(id=new_id(), study_id=study_id, number=2, instance_count=2)
        session.add(later)
    node.release(later.id)
    assert _count(node, VaultEntry) == 1
    first, second = crossing.read_bundles(node.settings)
    assert {item.sha256 for item in first.items if isinstance(item, InstanceItem)} == {
        item.sha256 for item in second.items if isinstance(item, InstanceItem)
    }


def test_an_unforeseen_error_stops_one_instance_and_is_shown(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = deidentify_file
    calls: list[int] = []

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return genuine(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(appliance.release, "deidentify_file", failing)
    revision_id = node.add_study(study_of(3))
    assert node.release(revision_id).state == WorkState.DONE
    assert _revision(node, revision_id).released_count == 2
    with reading(node.clinical.engine) as session:
        assert session.scalars(select(QuarantineItem.reason_code)).one() == "internal_error"


def test_slow_instances_do_not_cost_the_lease(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = node.enqueue(node.add_study(study_of(3)))
    leases: list[datetime] = []

    def slow(*arguments: Any) -> Released | Quarantined:
        with reading(node.clinical.engine) as session:
            until = session.get_one(ClinicalJob, job_id).lease_until
        assert until is not None
        leases.append(until)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 0.3, what="a long multi-frame instance is done")
        return deidentify_file(*arguments)

    monkeypatch.setattr(appliance.release, "deidentify_file", slow)
    with claimed(node.clinical.engine, ClinicalJob, job_id, "test", lease_s=6) as claim:
        assert claim is not None
        release_study(node.clinical, claim)
    assert leases[0] < leases[1] < leases[2]


def test_a_missing_file_fails_the_job_for_another_try(node: Node) -> None:
    revision_id = node.add_study(study_of(1))
    for path in (node.clinical.root / "instances").iterdir():
        path.unlink()
    job = node.release(revision_id)
    assert job.state == WorkState.FAILED
    assert node.bundles() in ([], [f".tmp-{appliance.release.bundle_id_of(revision_id, 'trial')}"])


def test_an_unknown_revision_is_dead(node: Node) -> None:
    assert node.release(new_id()).state == WorkState.DEAD


@pytest.mark.parametrize(
    "moment", ["second instance", "before vault", "before publish", "after publish", "in store"]
)
def test_killed_at_any_moment_and_repeated_it_is_one_release(
    node: Node, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = study_of(3)
    instances[2].BurnedInAnnotation = "YES"
    revision_id = node.add_study(instances)
    job_id = node.enqueue(revision_id)
    child = os.fork()
    if child == 0:
        _die_at(moment)
        node.run(job_id)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    node.reconcile(now() + timedelta(seconds=1))
    assert node.run(job_id).state == WorkState.DONE
    assert node.bundles() == [appliance.release.bundle_id_of(revision_id, "trial")]
    assert (_count(node, VaultEntry), _count(node, QuarantineItem)) == (1, 1)
    [entry] = _entries(node, "study.deidentified")
    assert (entry["released"], entry["quarantined"]) == (2, 1)


def _die_at(moment: str) -> None:
    """Replace a step by one that kills this process."""

    def die(*_arguments: object, **_named: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    genuine_one, genuine_publish = appliance.release.deidentify_one, BundleWriter.publish
    calls: list[int] = []

    def second(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            die()
        return genuine_one(*arguments)  # type: ignore[arg-type]

    def published(writer: BundleWriter, *arguments: object) -> None:
        genuine_publish(writer, *arguments)  # type: ignore[arg-type]
        die()

    if moment == "second instance":
        appliance.release.deidentify_one = second  # type: ignore[assignment]
    elif moment == "before vault":
        appliance.release._seal_identities = die
    elif moment == "before publish":
        BundleWriter.publish = die  # type: ignore[method-assign]
    elif moment == "after publish":
        BundleWriter.publish = published  # type: ignore[method-assign,assignment]
    else:
        appliance.release.insert_once = die  # type: ignore[assignment]


def test_a_study_of_which_nobody_knows_whose_it_is_waits_for_a_person(node: Node) -> None:
    revision_id = node.add_study(study_of(1))
    with writing(node.clinical.engine) as session:
        session.add(
            QuarantineItem(
                stage="index",
                reason_code=merges.PATIENT_MISMATCH,
                reason="-",
                study_id=session.get_one(StudyRevision, revision_id).study_id,
                dedupe_key="index:1",
            )
        )
    job = node.release(revision_id)
    assert (job.state, job.reason, job.attempts) == (WorkState.FAILED, merges.DISPUTED, 0)
    assert list(crossing.read_bundles(node.settings)) == []


def test_what_one_instance_names_goes_out_of_the_texts_of_another(node: Node) -> None:
    first, second = study_of(2)
    first.PatientName, first.AccessionNumber = "Lung^Sara", "ACC-5521-77"
    first.SeriesDescription = "CHEST"
    second.PatientName, second.AccessionNumber = "", ""
    second.SeriesDescription = "CHEST LUNG ACC552177"
    second.PatientID = first.PatientID
    node.release(node.add_study([first, second]))
    [bundle] = crossing.read_bundles(node.settings)
    texts = []
    for item in bundle.items:
        assert isinstance(item, InstanceItem)
        texts.append(dcmread(bundle.folder / item.file).SeriesDescription)
    assert texts == ["CHEST", "CHEST"]
