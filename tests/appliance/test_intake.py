from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance import filing, intake, placing, routing
from appliance.db.base import now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    ModelVersion,
    QuarantineItem,
    Result,
    Rule,
    Series,
    Study,
    StudyRevision,
)
from appliance.db.engine import reading, writing
from appliance.intake import AssembleCounts, IndexCounts, IntakeError
from appliance.node import open_clinical
from dicom_node import inbox as inbox_module
from dicom_node.errors import HeaderError
from dicom_node.inbox import Announcement, Inbox, InboxEntry
from dicom_node.index import read_header
from dicom_node.part10 import MAX_META_BYTES, decode
from tests.dicom_node.support import CALLER, ct, encoded
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

    from appliance.node import ClinicalZone
    from appliance.settings import Settings
    from tests.appliance.servers import PostgreSQL

QUIET_S = 5


@pytest.fixture
def zone(make_node: Callable[..., Settings]) -> Iterator[ClinicalZone]:
    settings = make_node(assembly={"quiet_period_s": QUIET_S, "max_wait_s": 600}, dicom={"min_free_mib": 1})
    opened = open_clinical(settings)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def inbox(zone: ClinicalZone) -> Inbox:
    return intake.open_inbox(zone)


def receive(inbox: Inbox, ds: Dataset, data: bytes | None = None, **announced: str) -> InboxEntry:
    values = {
        "sop_class_uid": str(ds.get("SOPClassUID", "1.2.3")),
        "sop_instance_uid": str(ds.get("SOPInstanceUID", "1.2.3")),
        "transfer_syntax_uid": str(ExplicitVRLittleEndian),
        **announced,
    }
    return inbox.commit([encoded(ds) if data is None else data], CALLER, Announcement(**values))


def rows(zone: ClinicalZone, model: type[Any]) -> list[Any]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(model)))


def later(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def study_of(count: int, **values: Any) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    return [ct(StudyInstanceUID=study, SeriesInstanceUID=series, **values) for _ in range(count)]


def test_an_entry_becomes_a_file_in_place_and_rows(zone: ClinicalZone, inbox: Inbox) -> None:
    ds = ct()
    entry = receive(inbox, ds)
    content = entry.path.read_bytes()
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=1)
    (study,), (series,), (instance,) = rows(zone, Study), rows(zone, Series), rows(zone, Instance)
    assert (study.study_instance_uid, study.patient_id) == (ds.StudyInstanceUID, "4711")
    assert (study.patient_name, study.modalities, study.calling_ae_title) == ("Doe^Jane", "CT", "PACS")
    assert (study.state, study.instance_count, study.revision) == ("receiving", 1, 0)
    assert (series.series_instance_uid, series.modality) == (ds.SeriesInstanceUID, "CT")
    assert (instance.sop_instance_uid, instance.sha256) == (ds.SOPInstanceUID, entry.sha256)
    assert (zone.root / instance.path).read_bytes() == content
    assert instance.received_at == entry.received_at
    assert inbox.count() == 0


def test_no_value_of_the_data_set_is_part_of_a_path(zone: ClinicalZone, inbox: Inbox) -> None:
    ds = ct(PatientID="../../4711")
    receive(inbox, ds)
    intake.index_batch(zone, inbox)
    names = "\n".join(str(path.relative_to(zone.root)) for path in zone.root.rglob("*"))
    for value in (ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, "4711", "Doe"):
        assert value not in names


def test_a_duplicate_with_equal_bytes_is_dropped(zone: ClinicalZone, inbox: Inbox) -> None:
    ds = ct()
    receive(inbox, ds)
    receive(inbox, ds)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=1, duplicates=1)
    receive(inbox, ds)
    assert intake.index_batch(zone, inbox) == IndexCounts(duplicates=1)
    assert len(rows(zone, Instance)) == 1
    assert rows(zone, Study)[0].instance_count == 1
    assert len(list((zone.root / "instances").rglob("*.dcm"))) == 1
    assert rows(zone, QuarantineItem) == []


@pytest.mark.parametrize("same_batch", [True, False])
def test_a_duplicate_with_other_bytes_is_quarantined_and_the_first_stays(
    zone: ClinicalZone, inbox: Inbox, same_batch: bool
) -> None:
    ds = ct()
    first = receive(inbox, ds)
    if not same_batch:
        intake.index_batch(zone, inbox)
    ds.StudyDescription = "changed"
    receive(inbox, ds)
    assert intake.index_batch(zone, inbox).quarantined == 1
    (item,), (instance,) = rows(zone, QuarantineItem), rows(zone, Instance)
    assert (item.stage, item.reason_code, item.instance_id) == ("index", "duplicate_other_bytes", instance.id)
    assert item.study_id == rows(zone, Study)[0].id
    assert (zone.root / item.path).is_file()
    assert instance.sha256 == first.sha256
    assert len(list((zone.root / "instances").rglob("*.dcm"))) == 1


def test_the_same_instance_in_another_transfer_syntax_is_other_bytes(
    zone: ClinicalZone, inbox: Inbox
) -> None:
    ds = ct()
    receive(inbox, ds)
    receive(inbox, ds, encoded(ds, ImplicitVRLittleEndian), transfer_syntax_uid=ImplicitVRLittleEndian)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=1, quarantined=1)


def hostile() -> dict[str, tuple[str, Callable[[Inbox], InboxEntry]]]:
    def dotted(inbox: Inbox) -> InboxEntry:
        ds = ct(SOPInstanceUID="1.2.3")
        data = encoded(ds).replace(b"1.2.3\0", b"../../")
        return receive(inbox, ds, data, sop_instance_uid="../../")

    return {
        "without StudyInstanceUID": ("missing_uid", lambda inbox: receive(inbox, ct(StudyInstanceUID=None))),
        "without SeriesInstanceUID": (
            "missing_uid",
            lambda inbox: receive(inbox, ct(SeriesInstanceUID=None)),
        ),
        "a SOP Instance UID with ../": ("invalid_uid", dotted),
        "truncated": ("truncated", lambda inbox: receive(inbox, ct(), encoded(ct())[:-50])),
        "empty": ("empty", lambda inbox: receive(inbox, ct(), b"")),
        "no DICOM": ("truncated", lambda inbox: receive(inbox, ct(), b"GET / HTTP/1.1\r\n\r\n" * 20)),
        "another instance than announced": (
            "uid_mismatch",
            lambda inbox: receive(inbox, ct(), sop_instance_uid="1.2.3.4.5"),
        ),
        "another class than announced": (
            "uid_mismatch",
            lambda inbox: receive(inbox, ct(), sop_class_uid="1.2.840.10008.5.1.4.1.1.4"),
        ),
    }


@pytest.mark.parametrize("what", hostile())
def test_what_cannot_be_filed_is_quarantined_and_holds_up_nothing(
    zone: ClinicalZone, inbox: Inbox, what: str
) -> None:
    code, send = hostile()[what]
    receive(inbox, ct())
    bad = send(inbox)
    content = bad.path.read_bytes()
    receive(inbox, ct())
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=2, quarantined=1)
    (item,) = rows(zone, QuarantineItem)
    assert item.reason_code in {code, "not_a_data_set"} if what == "no DICOM" else item.reason_code == code
    assert (zone.root / item.path).read_bytes() == content
    assert item.calling_ae_title == "PACS"
    assert inbox.count() == 0
    kinds = [entry.kind for entry in rows(zone, ClinicalLedgerEntry)]
    assert kinds.count("instance.quarantined") == 1


def test_a_character_set_with_a_nul_holds_up_nothing(zone: ClinicalZone, inbox: Inbox) -> None:
    ds = ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    receive(inbox, ds, encoded(ds).replace(b"ISO_IR 100", b"ISO_IR\x00100"))
    receive(inbox, ct())
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=2)


def test_a_header_that_breaks_the_reader_is_quarantined_alone(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = [receive(inbox, ct()) for _ in range(3)][1]

    def broken(path: Path, **options: Any) -> Any:
        if path == poison.path:
            raise IndexError("nobody foresaw this")
        return read_header(path, **options)

    monkeypatch.setattr("appliance.filing.read_header", broken)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=2, quarantined=1)
    (item,) = rows(zone, QuarantineItem)
    assert item.reason_code == "unreadable_header"
    assert "foresaw" not in item.reason
    assert (zone.root / item.path).is_file()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("module", "step"), [(inbox_module, "read_entry"), (filing, "read_header"), (placing, "link")]
)
def test_an_entry_that_the_disk_fails_waits_alone_and_is_tried_again(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, module: Any, step: str, number: int
) -> None:
    unlucky = [receive(inbox, ct()) for _ in range(3)][1]
    real = getattr(module, step)

    def failing(path: Path, *rest: Any, **options: Any) -> Any:
        if path == unlucky.path:
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, failing)
        assert intake.index_batch(zone, inbox) == IndexCounts(filed=2)
        with pytest.raises(OSError, match=os.strerror(number)):
            intake.index_batch(zone, inbox)
    assert rows(zone, QuarantineItem) == []
    assert inbox.entries(5) == [unlucky]
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=1)


@pytest.mark.parametrize("step", ["remove", "quarantine"])
def test_an_entry_that_cannot_leave_the_inbox_holds_up_no_other(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for ds in (ct(), ct(StudyInstanceUID=None), ct(), ct(StudyInstanceUID=None)):
        receive(inbox, ds)
    real, calls = getattr(inbox, step), 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.ENOSPC, "full")
        return real(*arguments)

    monkeypatch.setattr(inbox, step, failing)
    assert intake.index_batch(zone, inbox).total == 3
    assert inbox.count() == 1
    assert intake.index_batch(zone, inbox).total == 1
    assert len(rows(zone, Instance)) == len(rows(zone, QuarantineItem)) == 2
    assert all((zone.root / item.path).is_file() for item in rows(zone, Instance))


def test_a_batch_that_takes_long_is_cut_and_gives_signs_of_life(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ds in study_of(6):
        receive(inbox, ds)
    clock, beats = [0.0], []
    monkeypatch.setattr("appliance.filing.time.monotonic", lambda: clock[0])

    def slow(path: Path, **options: Any) -> Any:
        clock[0] += 1.5
        return read_header(path, **options)

    monkeypatch.setattr("appliance.filing.read_header", slow)
    assert intake.index_batch(zone, inbox, alive=lambda: beats.append(clock[0])).total == 2
    assert beats[:2] == [0.0, 1.5]
    assert [intake.index_batch(zone, inbox).total for _ in range(3)] == [2, 2, 0]


def test_a_file_that_is_no_entry_is_quarantined(zone: ClinicalZone, inbox: Inbox) -> None:
    (inbox.folder / f"{1:020d}-{'a' * 32}.dcm").write_bytes(b"left by somebody")
    assert intake.index_batch(zone, inbox) == IndexCounts(quarantined=1)
    (item,) = rows(zone, QuarantineItem)
    assert item.reason_code == "not_part10"
    assert (zone.root / item.path).read_bytes() == b"left by somebody"


def test_an_instance_that_names_another_patient_is_quarantined(zone: ClinicalZone, inbox: Inbox) -> None:
    first, other = study_of(2)
    other.PatientID = "0815"
    third, issuer = study_of(2)
    issuer.IssuerOfPatientID = "ELSEWHERE"
    for ds in (first, other, third, issuer):
        receive(inbox, ds)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=2, quarantined=2)
    assert {item.reason_code for item in rows(zone, QuarantineItem)} == {"patient_mismatch"}
    assert not any("0815" in item.reason or "4711" in item.reason for item in rows(zone, QuarantineItem))


def test_our_own_result_that_comes_back_is_dropped(zone: ClinicalZone, inbox: Inbox) -> None:
    (ds,) = study_of(1)
    receive(inbox, ds)
    intake.index_batch(zone, inbox)
    revision_id = intake.assemble(zone, rows(zone, Study)[0].id)
    uid = generate_uid(prefix="2.25.")
    with writing(zone.engine) as session:
        model = ModelVersion(name="m", version="1", package_sha256="0" * 64, path="models/m")
        session.add(model)
        session.flush()
        session.add(
            Result(
                study_id=rows(zone, Study)[0].id,
                study_revision_id=revision_id,
                model_version_id=model.id,
                kind="sr",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
                sop_instance_uid=uid,
                path="results/r.dcm",
            )
        )
    back = ct(StudyInstanceUID=ds.StudyInstanceUID, SOPInstanceUID=uid)
    receive(inbox, back)
    assert intake.index_batch(zone, inbox) == IndexCounts(own_results=1)
    assert rows(zone, Study)[0].state == "assembled"
    assert len(list((zone.root / "instances").rglob("*.dcm"))) == 1


def test_a_study_is_assembled_after_its_quiet_period_and_the_rules_are_asked(
    zone: ClinicalZone, inbox: Inbox
) -> None:
    for ds in study_of(3):
        receive(inbox, ds)
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(QUIET_S - 1)).assembled == 0
    assert intake.assemble_due(zone, later(QUIET_S + 1)).assembled == 1
    assert intake.assemble_due(zone, later(QUIET_S + 1)).assembled == 0
    (study,), (revision,) = rows(zone, Study), rows(zone, StudyRevision)
    assert (study.state, study.revision) == ("assembled", 1)
    assert (revision.number, revision.instance_count) == (1, 3)
    assert {job.kind for job in rows(zone, ClinicalJob)} == {"deidentify", "infer"}
    assert all(job.subject_id == revision.id for job in rows(zone, ClinicalJob))
    entries = [entry for entry in rows(zone, ClinicalLedgerEntry) if entry.kind == "study.assembled"]
    assert [json.loads(entry.body)["instances"] for entry in entries] == [3]


def test_a_late_instance_makes_a_new_revision_after_a_quiet_period_of_its_own(
    zone: ClinicalZone, inbox: Inbox
) -> None:
    *early, late, later_still = study_of(4)
    for ds in early:
        receive(inbox, ds)
    intake.index_batch(zone, inbox)
    intake.assemble_due(zone, later(QUIET_S + 1))
    with writing(zone.engine) as session:  # all that was long ago
        for instance in session.scalars(select(Instance)):
            instance.received_at -= timedelta(days=2)
        study = session.scalars(select(Study)).one()
        study.first_received_at -= timedelta(days=2)
    receive(inbox, late)
    intake.index_batch(zone, inbox)
    assert rows(zone, Study)[0].state == "receiving"
    assert intake.assemble_due(zone, later(1)).assembled == 0, (
        "the longest wait counts from the late instance"
    )
    receive(inbox, later_still)
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(QUIET_S + 1)).assembled == 1
    assert [(item.number, item.instance_count) for item in rows(zone, StudyRevision)] == [(1, 2), (2, 4)]
    assert len(rows(zone, ClinicalJob)) == 4


def test_a_duplicate_makes_no_new_revision(zone: ClinicalZone, inbox: Inbox) -> None:
    (ds,) = study_of(1)
    receive(inbox, ds)
    intake.index_batch(zone, inbox)
    intake.assemble_due(zone, later(QUIET_S + 1))
    receive(inbox, ds)
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(3600)).assembled == 0


def change_rule(zone: ClinicalZone, **values: Any) -> None:
    with writing(zone.engine) as session:
        for name, value in values.items():
            setattr(session.scalars(select(Rule)).one(), name, value)


def test_a_rule_that_cannot_be_evaluated_stops_the_study_until_it_is_mended(
    zone: ClinicalZone, inbox: Inbox
) -> None:
    receive(inbox, ct())
    intake.index_batch(zone, inbox)
    change_rule(zone, condition={"modality": ["CT"]}, action={"priority": "urgent"})
    assert intake.assemble_due(zone, later(QUIET_S + 1)) == AssembleCounts(stopped=1)
    (study,) = rows(zone, Study)
    assert (study.state, study.revision) == ("quarantined", 0)
    assert "action.priority" in study.reason
    assert rows(zone, StudyRevision) == rows(zone, ClinicalJob) == []
    assert intake.assemble_due(zone, later(QUIET_S + 1)) == AssembleCounts()
    assert intake.retry_stopped(zone) == AssembleCounts(stopped=1)
    kinds = [entry.kind for entry in rows(zone, ClinicalLedgerEntry)]
    assert kinds.count("study.quarantined") == 1
    change_rule(zone, action={"research": True})
    assert intake.retry_stopped(zone) == AssembleCounts(assembled=1)
    (study,) = rows(zone, Study)
    assert (study.state, study.revision, study.reason) == ("assembled", 1, None)
    assert [job.kind for job in rows(zone, ClinicalJob)] == ["deidentify"]


def test_a_late_instance_of_a_stopped_study_starts_a_quiet_period(zone: ClinicalZone, inbox: Inbox) -> None:
    first, second = study_of(2)
    receive(inbox, first)
    intake.index_batch(zone, inbox)
    change_rule(zone, condition=["CT"])
    intake.assemble_due(zone, later(QUIET_S + 1))
    receive(inbox, second)
    intake.index_batch(zone, inbox)
    change_rule(zone, condition={})
    assert intake.retry_stopped(zone) == AssembleCounts()
    assert intake.assemble_due(zone, later(QUIET_S + 1)) == AssembleCounts(assembled=1)


def test_a_study_that_fails_holds_up_no_other(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ds in (ct(), ct(), ct()):
        receive(inbox, ds)
    intake.index_batch(zone, inbox)
    real, calls = routing.apply, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OperationalError("select", {}, ValueError("gone"))
        return real(*arguments)

    monkeypatch.setattr(routing, "apply", failing)
    with pytest.raises(OperationalError):
        intake.assemble_due(zone, later(QUIET_S + 1))
    assert sorted(study.state for study in rows(zone, Study)) == ["assembled", "assembled", "receiving"]
    assert intake.assemble_due(zone, later(QUIET_S + 1)) == AssembleCounts(assembled=1)


def test_a_study_can_be_assembled_at_once(zone: ClinicalZone, inbox: Inbox) -> None:
    receive(inbox, ct())
    intake.index_batch(zone, inbox)
    study_id = rows(zone, Study)[0].id
    assert intake.assemble(zone, study_id) is not None
    assert intake.assemble(zone, study_id) is None
    with pytest.raises(IntakeError):
        intake.assemble(zone, "0" * 32)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (filing, "_known"),
        (placing, "link"),
        (filing, "sync_folder"),
        (filing, "_commit"),
        (filing, "_file_one"),
        (filing, "_settle"),
        (Inbox, "remove"),
        (Inbox, "quarantine"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", [1, 2])
def test_indexing_that_is_killed_anywhere_is_repeated_without_loss_or_double(
    zone: ClinicalZone,
    inbox: Inbox,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    before: bool,
    call: int,
) -> None:
    good = study_of(3)
    entries = [receive(inbox, ds) for ds in good]
    receive(inbox, good[0])
    receive(inbox, ct(StudyInstanceUID=None))
    receive(inbox, ct(SeriesInstanceUID=None))
    real, calls = getattr(module, name), 0

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return real(*arguments, **options)
        if not before:
            real(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with contextlib.suppress(Killed):
            intake.index_batch(zone, inbox)
    while intake.index_batch(zone, inbox).total:
        pass
    stored = rows(zone, Instance)
    assert {item.sha256 for item in stored} == {entry.sha256 for entry in entries}
    assert len(stored) == 3
    assert all((zone.root / item.path).is_file() for item in stored)
    (study,) = rows(zone, Study)
    assert study.instance_count == 3
    items = rows(zone, QuarantineItem)
    assert [item.reason_code for item in items] == ["missing_uid", "missing_uid"]
    assert all((zone.root / item.path).is_file() for item in items)
    assert inbox.count() == 0


def test_a_file_system_without_links_gets_copies(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    entry = receive(inbox, ct())
    content = entry.path.read_bytes()
    intake.index_batch(zone, inbox)
    assert (zone.root / rows(zone, Instance)[0].path).read_bytes() == content


def test_many_entries_are_filed_in_batches(zone: ClinicalZone, inbox: Inbox) -> None:
    for ds in study_of(25):
        receive(inbox, ds)
    assert [intake.index_batch(zone, inbox, 10).total for _ in range(4)] == [10, 10, 5, 0]
    with reading(zone.engine) as session:
        assert session.scalar(select(func.count()).select_from(Instance)) == 25


def test_acknowledged_bundles_are_removed_and_nothing_else(zone: ClinicalZone) -> None:
    out, acks = zone.settings.crossing_out, zone.settings.crossing_in / "acks"
    taken, waiting = "a" * 32, "b" * 32
    for name in (taken, waiting, "keep"):
        (out / name).mkdir()
        (out / name / "bundle.json").write_text("{}", encoding="utf-8")
    for name in (taken, "keep", "c" * 32, ".tmp"):
        (acks / name).touch()
    assert intake.remove_acknowledged_bundles(zone) == 1
    assert sorted(path.name for path in out.iterdir()) == [waiting, "keep"]
    assert (acks / taken).exists()  # the research zone's to remove


def test_the_quiet_period_counts_from_what_is_known_to_be_filed(zone: ClinicalZone, inbox: Inbox) -> None:
    first, second = study_of(2)
    receive(inbox, first)
    intake.index_batch(zone, inbox)
    receive(inbox, second)
    oldest = inbox.oldest_received_at()
    assert oldest is not None
    assert oldest.tzinfo is UTC
    assert intake.assemble_due(zone, min(later(QUIET_S + 1), oldest)).assembled == 0


def test_an_instance_that_came_slowly_starts_a_quiet_period_of_its_own(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = study_of(3)
    receive(inbox, first)
    intake.index_batch(zone, inbox)
    announced = Announcement(str(second.SOPClassUID), str(second.SOPInstanceUID), str(ExplicitVRLittleEndian))
    start_ns = time.time_ns()
    with inbox.begin(CALLER, announced) as writer:
        writer.write(encoded(second))
        with monkeypatch.context() as patch:  # the transfer takes longer than the quiet period
            patch.setattr("dicom_node.inbox.time.time_ns", lambda: start_ns + (QUIET_S + 1) * 10**9)
            writer.commit()
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(QUIET_S + 2)).assembled == 0
    receive(inbox, third)
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(2 * QUIET_S + 2)).assembled == 1
    assert [item.instance_count for item in rows(zone, StudyRevision)] == [3]


def test_an_entry_that_the_database_refuses_is_quarantined_alone(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = [receive(inbox, ct()) for _ in range(4)][1]
    real = filing._file_one

    def refuse(session: Any, plan: Any) -> Any:
        if plan.entry.id == poison.id:
            raise IntegrityError("insert", {}, ValueError("too much"))
        return real(session, plan)

    monkeypatch.setattr(filing, "_file_one", refuse)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=3, quarantined=1)
    (item,) = rows(zone, QuarantineItem)
    assert item.reason_code == "not_filed"
    assert (zone.root / item.path).is_file()
    assert len(list((zone.root / "instances").rglob("*.dcm"))) == 3


def test_a_database_that_is_away_costs_no_entry(
    zone: ClinicalZone, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = receive(inbox, ct())

    def away(*_: Any) -> Any:
        raise OperationalError("select", {}, ValueError("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(filing, "_file_one", away)
        with pytest.raises(OperationalError):
            intake.index_batch(zone, inbox)
    assert inbox.entries(5) == [entry]
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=1)


@pytest.mark.postgres
def test_intake_does_the_same_on_postgresql(
    make_node: Callable[..., Settings], postgresql: PostgreSQL
) -> None:
    settings = make_node(fresh=True, clinical={"database_url": postgresql.new_database()})
    zone = open_clinical(settings)
    inbox = intake.open_inbox(zone)
    inbox.min_free_bytes = 0
    first, second = study_of(2)
    odd = ct(StudyDescription="a\x00b", SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
    for ds in (first, second, odd, first, ct(StudyInstanceUID=None)):
        receive(inbox, ds)
    assert intake.index_batch(zone, inbox) == IndexCounts(filed=3, duplicates=1, quarantined=1)
    assert intake.assemble_due(zone, later(3600)).assembled == 2
    assert sorted(study.instance_count for study in rows(zone, Study)) == [1, 2]
    zone.engine.dispose()


def test_work_that_could_not_be_announced_is_left_to_the_reconciler(zone: ClinicalZone, inbox: Inbox) -> None:
    receive(inbox, ct())
    intake.index_batch(zone, inbox)
    assert intake.assemble_due(zone, later(3600)).assembled == 1, "though no broker runs"
    assert {job.woken_at for job in rows(zone, ClinicalJob)} == {None}


@pytest.mark.real_data
def test_real_files_are_filed_or_quarantined_with_a_reason(zone: ClinicalZone, inbox: Inbox) -> None:
    sent = 0
    for path in sorted((shared_data_dir() / "dicom").rglob("*.dcm"))[::2]:
        try:
            meta = pydicom.filereader.read_file_meta_info(path)
            announced = Announcement(
                str(meta.MediaStorageSOPClassUID),
                str(meta.MediaStorageSOPInstanceUID),
                str(meta.TransferSyntaxUID),
            )
            offset = decode(path.read_bytes()[:MAX_META_BYTES]).data_offset
        except (pydicom.errors.InvalidDicomError, AttributeError, HeaderError):
            continue
        inbox.commit([path.read_bytes()[offset:]], CALLER, announced)
        sent += 1
    counts = IndexCounts()
    while (batch := intake.index_batch(zone, inbox)).total:
        counts = IndexCounts(
            counts.filed + batch.filed,
            counts.duplicates + batch.duplicates,
            counts.quarantined + batch.quarantined,
        )
    assert counts.total == sent > 100
    assert counts.filed > sent * 0.5
    assert all(item.reason for item in rows(zone, QuarantineItem))
