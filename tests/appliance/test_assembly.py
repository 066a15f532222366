from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sqlalchemy import event, select

from appliance import disputes, erasing, intake, merges, patience, quarantine, work
from appliance.db.base import new_id, now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    QuarantineItem,
    Series,
    Study,
    StudyRevision,
)
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.node import open_clinical
from dicom_node.assembly import Waits, longest
from dicom_node.inbox import Announcement, Inbox, InboxEntry
from tests.dicom_node.support import CALLER, ct, encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom.dataset import Dataset

    from appliance.node import ClinicalZone
    from appliance.settings import Settings
    from tests.appliance.servers import PostgreSQL

QUIET_S = 60
WAIT_S = 600


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def zone(request: pytest.FixtureRequest, make_node: Callable[..., Settings]) -> Iterator[ClinicalZone]:
    sections: dict[str, Any] = {
        "assembly": {"quiet_period_s": QUIET_S, "max_wait_s": WAIT_S},
        "dicom": {"min_free_mib": 1},
    }
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        sections |= {"clinical": {"database_url": server.new_database()}, "fresh": True}
    opened = open_clinical(make_node(**sections))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def inbox(zone: ClinicalZone) -> Inbox:
    return intake.open_inbox(zone)


def receive(zone: ClinicalZone, inbox: Inbox, *studies: Dataset, sender: str = "PACS") -> list[InboxEntry]:
    """Receive instances, and file them."""
    caller = type(CALLER)(sender, CALLER.called_ae_title, CALLER.address)
    entries = [
        inbox.commit(
            [encoded(ds)],
            caller,
            Announcement(str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ExplicitVRLittleEndian)),
        )
        for ds in studies
    ]
    intake.index_batch(zone, inbox)
    return entries


def rows(zone: ClinicalZone, model: type[Any]) -> list[Any]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(model)))


def later(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def study_of(count: int, **values: Any) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    return [ct(StudyInstanceUID=study, SeriesInstanceUID=series, **values) for _ in range(count)]


def add_peer(zone: ClinicalZone, ae_title: str, quiet_s: float | None, wait_s: float | None = None) -> None:
    with writing(zone.engine) as session:
        session.add(
            Peer(
                name=new_id(),
                ae_title=ae_title,
                host="10.0.0.1",
                may_send=True,
                quiet_period_s=quiet_s,
                max_wait_s=wait_s,
            )
        )


def complete(zone: ClinicalZone) -> str:
    (study,) = rows(zone, Study)
    with writing(zone.engine) as session:
        assert intake.mark_complete(session, zone.ledger, study.id, "node")
    return str(study.id)


def test_the_slowest_of_several_sources_decides() -> None:
    usual = Waits(60, 3600)
    assert longest([], usual) == usual
    assert longest([Waits(5, 7200), Waits(120, 300)], usual) == Waits(120, 7200)


def test_a_source_has_a_quiet_period_of_its_own(zone: ClinicalZone, inbox: Inbox) -> None:
    add_peer(zone, "FAST", 5)
    add_peer(zone, "SLOW", 300)
    receive(zone, inbox, *study_of(1), sender="FAST")
    receive(zone, inbox, *study_of(1), sender="SLOW")
    receive(zone, inbox, *study_of(1), sender="OTHER")
    assert intake.assemble_due(zone, later(6)).assembled == 1
    counts = intake.assemble_due(zone, later(QUIET_S + 1))
    assert (counts.assembled, counts.waiting) == (1, 1)
    assert intake.assemble_due(zone, later(301)).assembled == 1


def test_a_study_of_several_sources_waits_for_the_slowest(zone: ClinicalZone, inbox: Inbox) -> None:
    add_peer(zone, "FAST", 5)
    add_peer(zone, "SLOW", 300)
    first, second = study_of(2)
    receive(zone, inbox, first, sender="FAST")
    receive(zone, inbox, second, sender="SLOW")
    assert intake.assemble_due(zone, later(6)).assembled == 0
    assert intake.assemble_due(zone, later(301)).assembled == 1


def test_a_source_has_a_longest_wait_of_its_own(zone: ClinicalZone, inbox: Inbox) -> None:
    add_peer(zone, "STREAM", 400, 500)
    first, second = study_of(2)
    receive(zone, inbox, first, sender="STREAM")
    with writing(zone.engine) as session:
        session.scalars(select(Study)).one().pending_since = later(-450)
    receive(zone, inbox, second, sender="STREAM")
    assert intake.assemble_due(zone, later(40)).assembled == 0
    assert intake.assemble_due(zone, later(60)).assembled == 1
    assert rows(zone, Study)[0].pending_since is None


def test_a_complete_study_is_assembled_without_a_quiet_period(zone: ClinicalZone, inbox: Inbox) -> None:
    receive(zone, inbox, *study_of(2))
    study_id = complete(zone)
    assert intake.assemble_due(zone, later(QUIET_S - 1)).assembled == 1
    assert rows(zone, StudyRevision)[0].instance_count == 2
    with writing(zone.engine) as session:
        assert not intake.mark_complete(session, zone.ledger, study_id, "node"), "it does not wait any more"
    kinds = [entry.kind for entry in rows(zone, ClinicalLedgerEntry)]
    assert kinds.count("study.complete") == 1


def test_a_complete_study_waits_until_what_was_received_before_is_filed(
    zone: ClinicalZone, inbox: Inbox
) -> None:
    first, second = study_of(2)
    receive(zone, inbox, first)
    announced = Announcement(str(second.SOPClassUID), str(second.SOPInstanceUID), str(ExplicitVRLittleEndian))
    inbox.commit([encoded(second)], CALLER, announced)
    complete(zone)
    looks, oldest = intake.Looks(zone), inbox.oldest_received_at()
    assert oldest is not None
    assert looks.look(oldest).assembled == 0
    intake.index_batch(zone, inbox)
    assert looks.look(now()).assembled == 1
    assert rows(zone, StudyRevision)[0].instance_count == 2


def test_a_late_instance_takes_back_that_the_study_is_complete(zone: ClinicalZone, inbox: Inbox) -> None:
    first, second = study_of(2)
    receive(zone, inbox, first)
    complete(zone)
    intake.assemble_due(zone, later(QUIET_S - 1))
    receive(zone, inbox, second)
    assert not rows(zone, Study)[0].complete
    assert intake.assemble_due(zone, later(1)).assembled == 0
    assert intake.assemble_due(zone, later(QUIET_S + 1)).assembled == 1
    assert [row.instance_count for row in rows(zone, StudyRevision)] == [1, 2]


def test_a_revision_ends_with_what_is_known_to_be_filed(zone: ClinicalZone, inbox: Inbox) -> None:
    receive(zone, inbox, *study_of(1))
    complete(zone)
    (study,), at = rows(zone, Study), now()
    assert intake.Looks(zone).look(at).assembled == 0
    later_on = later(5)
    intake.assemble_due(zone, later_on)
    (revision,) = rows(zone, StudyRevision)
    assert study.last_received_at <= revision.assembled_at < later_on


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"PatientID": "0815"}, merges.INSTANCE_OF_OTHER_PATIENT),
        ({"StudyInstanceUID": "2.25.99"}, merges.INSTANCE_OF_OTHER_STUDY),
        ({"PatientID": "0815", "SOPInstanceUID": "2.25.98"}, merges.PATIENT_MISMATCH),
        (
            {"StudyInstanceUID": "2.25.99", "SOPInstanceUID": "2.25.98"},
            merges.SERIES_OF_OTHER_STUDY,
        ),
        ({"StudyDescription": "changed"}, merges.OTHER_BYTES),
    ],
)
def test_a_merge_is_noticed_and_named(
    zone: ClinicalZone, inbox: Inbox, change: dict[str, str], code: str
) -> None:
    (ds,) = study_of(1)
    receive(zone, inbox, ds)
    for name, value in change.items():
        setattr(ds, name, value)
    receive(zone, inbox, ds)
    (item,), (study,) = rows(zone, QuarantineItem), rows(zone, Study)
    assert (item.reason_code, item.study_id) == (code, study.id)
    assert "0815" not in item.reason
    with reading(zone.engine) as session:
        assert merges.is_disputed(session, study.id) is (code != merges.OTHER_BYTES)


def disputed(zone: ClinicalZone, inbox: Inbox) -> str:
    """Receive a study of two patients; return the id of the item in quarantine."""
    first, other = study_of(2)
    other.PatientID = "0815"
    receive(zone, inbox, first, other)
    (item,) = rows(zone, QuarantineItem)
    return str(item.id)


def test_a_study_of_two_patients_stops_until_a_person_decides(zone: ClinicalZone, inbox: Inbox) -> None:
    item_id = disputed(zone, inbox)
    assert intake.assemble_due(zone, later(QUIET_S + 1)).stopped == 1
    (study,) = rows(zone, Study)
    assert (study.state, study.reason) == ("quarantined", merges.DISPUTED)
    assert intake.retry_stopped(zone).stopped == 1
    with writing(zone.engine) as session:
        with pytest.raises(quarantine.QuarantineError, match="whose study"):
            quarantine.review(session, zone.ledger, item_id, actor="u")
        with pytest.raises(quarantine.QuarantineError, match="reason: expected one of"):
            quarantine.discard(session, zone.ledger, item_id, "Mr Miller", actor="u")
        quarantine.discard(session, zone.ledger, item_id, "wrong_patient", actor="u")
    (item,) = rows(zone, QuarantineItem)
    assert (zone.root / item.path).exists()
    assert quarantine.settle(zone, inbox) == 1
    assert quarantine.settle(zone, inbox) == 0
    (settled,) = rows(zone, QuarantineItem)
    assert (settled.path, settled.resolution) == (None, "discarded:wrong_patient")
    assert not (zone.root / item.path).exists()
    assert intake.retry_stopped(zone).assembled == 1
    with writing(zone.engine) as session, pytest.raises(quarantine.QuarantineError, match="decided already"):
        quarantine.discard(session, zone.ledger, item_id, "wrong_patient", actor="u")


def test_an_item_is_filed_again_after_a_correction(zone: ClinicalZone, inbox: Inbox) -> None:
    item_id = disputed(zone, inbox)
    with writing(zone.engine) as session:  # staff have corrected which patient the study is of
        session.scalars(select(Study)).one().patient_id = "0815"
    with writing(zone.engine) as session:
        quarantine.file_again(session, zone.ledger, item_id, actor="u")
    quarantine.settle(zone, inbox)
    quarantine.settle(zone, inbox)
    with reading(zone.engine) as session:
        assert merges.is_disputed(session, rows(zone, Study)[0].id), "not before it is filed"
    intake.index_batch(zone, inbox)
    quarantine.settle(zone, inbox)
    (item,) = rows(zone, QuarantineItem)
    assert (item.resolution, item.path) == ("filed", None)
    assert item.resolved_at is not None
    assert len(rows(zone, Instance)) == 2
    assert list(inbox.quarantined.iterdir()) == []


def test_an_item_that_is_filed_again_in_vain_stays_open(zone: ClinicalZone, inbox: Inbox) -> None:
    item_id = disputed(zone, inbox)
    for _ in range(2):
        with writing(zone.engine) as session:
            quarantine.file_again(session, zone.ledger, item_id, actor="u")
        quarantine.settle(zone, inbox)
        intake.index_batch(zone, inbox)
        quarantine.settle(zone, inbox)
        (item,) = rows(zone, QuarantineItem)
        assert (item.resolution, item.resolved_at) == ("", None)
        assert (zone.root / item.path).exists()


def test_only_what_was_not_filed_can_be_filed_again(zone: ClinicalZone) -> None:
    with writing(zone.engine) as session:
        item = QuarantineItem(
            stage="deliver", reason_code="x", reason="x", dedupe_key="d", path="results/r.dcm"
        )
        session.add(item)
        session.flush()
        with pytest.raises(quarantine.QuarantineError):
            quarantine.file_again(session, zone.ledger, item.id, actor="u")
        quarantine.discard(session, zone.ledger, item.id, "not_needed", actor="u")
        assert (item.path, item.resolution) == ("results/r.dcm", "discarded:not_needed")


def test_the_look_at_many_waiting_studies_is_cheap(zone: ClinicalZone) -> None:
    add_peer(zone, "SLOW", 3000, 6000)
    received = later(-100)
    with writing(zone.engine) as session:
        for number in range(2000):
            sender = "SLOW" if number % 2 else "PACS"
            study = Study(
                study_instance_uid=f"2.25.{number}",
                calling_ae_title=sender,
                first_received_at=received,
                last_received_at=received if sender == "SLOW" else now(),
            )
            session.add(study)
            session.flush()
            session.add(Series(study_id=study.id, series_instance_uid="2.25.1"))
    statements: list[str] = []
    event.listen(
        zone.engine, "before_cursor_execute", lambda _c, _cur, statement, *_: statements.append(statement)
    )
    with reading(zone.engine) as session:
        waits = patience.read(session, zone.settings.assembly)
        assert patience.due(session, waits, now()) == []
    assert sum("FROM study" in statement or "FROM series" in statement for statement in statements) == 1


def resend(zone: ClinicalZone, inbox: Inbox) -> str:
    """Receive a study, and all of it again with the patient it was merged into; return its row id."""
    instances = study_of(3)
    receive(zone, inbox, *instances)
    intake.assemble_due(zone, later(QUIET_S + 1))
    for ds in instances:
        ds.PatientID = "0815"
    receive(zone, inbox, *instances)
    (study,) = rows(zone, Study)
    return str(study.id)


def test_a_person_takes_the_identity_that_came_later(zone: ClinicalZone, inbox: Inbox) -> None:
    study_id = resend(zone, inbox)
    stored = [zone.root / instance.path for instance in rows(zone, Instance)]
    with writing(zone.engine) as session:
        job = session.scalars(select(ClinicalJob).where(ClinicalJob.kind == "infer")).one()
        job.state, job.lease_until = "running", later(60)
    with pytest.raises(quarantine.QuarantineError, match="going on"):
        disputes.take_quarantined(zone, study_id, actor="u")
    with writing(zone.engine) as session:
        session.get_one(ClinicalJob, job.id).state = "queued"
    assert disputes.take_quarantined(zone, study_id, actor="u") == 3
    quarantine.settle(zone, inbox)
    intake.index_batch(zone, inbox)
    quarantine.settle(zone, inbox)
    (study,) = rows(zone, Study)
    assert (study.patient_id, study.instance_count, study.state) == ("0815", 3, "receiving")
    assert {item.resolution for item in rows(zone, QuarantineItem)} == {"filed"}
    (erase,) = rows(zone, ClinicalJob)
    with work.claimed(zone.engine, ClinicalJob, erase.id, "t", 60) as claim:
        assert claim is not None
        erasing.erase(zone, claim)
    assert not any(path.exists() for path in stored)
    assert all((zone.root / instance.path).exists() for instance in rows(zone, Instance))
    assert intake.assemble_due(zone, later(QUIET_S + 1)).assembled == 1


def test_a_person_keeps_the_identity_that_is_stored(zone: ClinicalZone, inbox: Inbox) -> None:
    study_id = resend(zone, inbox)
    assert disputes.keep_stored(zone, study_id, actor="u") == 3
    quarantine.settle(zone, inbox)
    (study,) = rows(zone, Study)
    assert (study.patient_id, study.instance_count, study.state) == ("4711", 3, "assembled")
    assert list(inbox.quarantined.iterdir()) == []
    with pytest.raises(quarantine.QuarantineError, match="nothing in quarantine"):
        disputes.keep_stored(zone, study_id, actor="u")
    with pytest.raises(quarantine.QuarantineError, match="nothing in quarantine"):
        disputes.take_quarantined(zone, study_id, actor="u")
