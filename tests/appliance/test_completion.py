from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from sqlalchemy import select, update

from appliance import completion
from appliance.db.base import now
from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.db.peers import PerformedProcedureStep
from appliance.filing import index_batch, open_inbox
from dicom_node.inbox import Announcement
from dicom_node.ports import Caller
from tests.appliance.dimse_node import CT, EXPLICIT, Node
from tests.dicom_node.support import ct, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MPPS = "1.2.840.10008.3.1.2.3.3"
NOTIFICATION = "1.2.840.10008.5.1.4.33"


@pytest.fixture
def scanner(running: Node) -> Iterator[Any]:
    """Give an association of the scanner for procedure steps and notifications."""
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(MPPS, ExplicitVRLittleEndian)
    ae.add_requested_context(NOTIFICATION, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", running.port, ae_title="CLOISTER")
    assert association.is_established
    yield association
    if association.is_established:
        association.release()


def item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def begin(scanner: Any, uid: str, study: str = "1.2.1", status: str = "IN PROGRESS") -> int:
    scheduled = [item(StudyInstanceUID=study)]
    ds = item(PerformedProcedureStepStatus=status, ScheduledStepAttributesSequence=scheduled)
    answer, _ = scanner.send_n_create(ds, MPPS, uid)
    return int(answer.Status)


def end(scanner: Any, uid: str, instances: Sequence[str], status: str = "COMPLETED") -> Dataset:
    images = [item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=one) for one in instances]
    series = [item(SeriesInstanceUID="1.2.1.1", ReferencedImageSequence=images)]
    ds = item(PerformedProcedureStepStatus=status, PerformedSeriesSequence=series)
    answer, _ = scanner.send_n_set(ds, MPPS, uid)
    return answer  # type: ignore[no-any-return]


def filed(running: Node, uid: str = "") -> str:
    """File an instance of the study; return its UID."""
    ds = ct({"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "PatientID": "P1"})
    ds.SOPInstanceUID = uid or ds.SOPInstanceUID
    inbox = open_inbox(running.zone)
    announced = Announcement(CT, str(ds.SOPInstanceUID), EXPLICIT)
    inbox.commit([encoded(ds)], Caller("SCANNER", "CLOISTER", "127.0.0.1"), announced)
    index_batch(running.zone, inbox)
    return str(ds.SOPInstanceUID)


def is_complete(running: Node) -> bool:
    with reading(running.zone.engine) as session:
        return session.scalars(select(Study.complete)).one()


def test_a_completed_step_completes_its_study_when_all_is_filed(running: Node, scanner: Any) -> None:
    assert begin(scanner, "1.2.9.1") == 0
    first, late = filed(running), str(generate_uid())
    assert completion.mark_complete(running.zone) == 0
    assert end(scanner, "1.2.9.1", [first, late]).Status == 0
    assert completion.mark_complete(running.zone) == 0
    filed(running, late)
    assert completion.mark_complete(running.zone) == 1
    assert is_complete(running)
    assert completion.mark_complete(running.zone) == 0


def test_a_study_waits_for_its_other_steps(running: Node, scanner: Any) -> None:
    begin(scanner, "1.2.9.1")
    begin(scanner, "1.2.9.2")
    one = filed(running)
    end(scanner, "1.2.9.1", [one])
    assert completion.mark_complete(running.zone) == 0
    end(scanner, "1.2.9.2", [], "DISCONTINUED")
    assert completion.mark_complete(running.zone) == 1


def test_a_step_that_ended_is_changed_no_more(running: Node, scanner: Any) -> None:
    begin(scanner, "1.2.9.1")
    end(scanner, "1.2.9.1", [], "DISCONTINUED")
    answer = end(scanner, "1.2.9.1", ["1.2.3"])
    assert (answer.Status, answer.ErrorID) == (0x0110, 0xA710)
    with reading(running.zone.engine) as session:
        assert session.scalars(select(PerformedProcedureStep.status)).one() == "DISCONTINUED"


def test_steps_out_of_order_are_refused(running: Node, scanner: Any) -> None:
    assert begin(scanner, "1.2.9.1", status="COMPLETED") == 0x0106
    assert begin(scanner, "1.2.9.1", study="") == 0x0106
    assert end(scanner, "1.2.9.1", []).Status == 0x0112
    assert begin(scanner, "1.2.9.1") == 0
    assert begin(scanner, "1.2.9.1") == 0x0111
    assert end(scanner, "1.2.9.1", [], "PAUSED").Status == 0x0106
    assert end(scanner, "1.2.9.1", ["no uid"]).Status == 0x0106


def test_what_was_announced_and_never_comes_is_awaited_no_longer(running: Node, scanner: Any) -> None:
    begin(scanner, "1.2.9.1")
    end(scanner, "1.2.9.1", [filed(running), "1.2.3.4"])
    with writing(running.zone.engine) as session:
        session.execute(update(PerformedProcedureStep).values(updated_at=now() - timedelta(days=2)))
    assert completion.mark_complete(running.zone) == 0
    with reading(running.zone.engine) as session:
        assert session.scalars(select(PerformedProcedureStep.settled)).one()
    assert not is_complete(running)


def test_a_notification_that_all_is_available_completes_the_study(running: Node, scanner: Any) -> None:
    images = [item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=filed(running))]
    series = [item(SeriesInstanceUID="1.2.1.1", ReferencedSOPSequence=images)]
    ds = item(StudyInstanceUID="1.2.1", ReferencedSeriesSequence=series)
    answer, _ = scanner.send_n_create(ds, NOTIFICATION, "1.2.9.5")
    assert answer.Status == 0
    assert completion.mark_complete(running.zone) == 1
    empty, _ = scanner.send_n_create(item(StudyInstanceUID="1.2.1"), NOTIFICATION, "1.2.9.6")
    assert empty.Status == 0x0106
