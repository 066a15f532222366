from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role

from appliance.catalogue import DatabaseCatalogue
from dicom_node.finding import find_service
from dicom_node.inbox import Inbox
from dicom_node.query import Level, Query
from dicom_node.scp import SCPConfig, StorageSCP
from tests.appliance.dimse_node import CT, EXPLICIT, Node
from tests.appliance.test_catalogue import receive
from tests.dicom_node.support import (
    Heard,
    dcmtk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATIENT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"
SERIES_OF_ONE = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "", "Modality": ""}


@pytest.fixture
def filled(running: Node) -> Node:
    """Give a node with two patients and three studies."""
    one = {"PatientID": "P1", "PatientName": "Doe^Jane", "StudyInstanceUID": "1.2.1", "StudyDate": "20240105"}
    receive(running.zone, **one, SeriesInstanceUID="1.2.1.1", Modality="CT", InstanceNumber="1")
    receive(running.zone, **one, SeriesInstanceUID="1.2.1.1", Modality="CT", InstanceNumber="2")
    receive(running.zone, **one, SeriesInstanceUID="1.2.1.2", Modality="SR")
    late = {"PatientID": "P1", "PatientName": "Doe^Jane", "StudyInstanceUID": "1.2.2"}
    receive(running.zone, **late, SeriesInstanceUID="1.2.2.1", Modality="MR")
    other = {"PatientID": "P2", "PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"}
    receive(running.zone, **other, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1", Modality="CR")
    return running


def identifier(level: str, **values: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def associate(running: Node, contexts: Sequence[tuple[str, Sequence[str]]], **more: Any) -> Any:
    ae = AE(ae_title=more.pop("title", "WORKSTATION"))
    for abstract, syntaxes in contexts:
        ae.add_requested_context(abstract, list(syntaxes))
    return ae.associate("127.0.0.1", running.port, ae_title="CLOISTER", **more)


def find(running: Node, ds: Dataset, model: str = STUDY_FIND) -> tuple[list[int], list[Dataset]]:
    association = associate(running, [(model, [EXPLICIT, "1.2.840.10008.1.2"])])
    assert association.is_established
    answers = list(association.send_c_find(ds, model))
    association.release()
    return [int(status.Status) for status, _ in answers], [found for _, found in answers if found]


def test_studies_are_found_with_what_was_asked_for(filled: Node) -> None:
    asked = {"PatientName": "doe*", "StudyDate": "20240101-", "StudyInstanceUID": "", "ModalitiesInStudy": ""}
    counts = {
        "NumberOfStudyRelatedSeries": "",
        "NumberOfStudyRelatedInstances": "",
        "InstanceAvailability": "",
    }
    statuses, (study,) = find(filled, identifier("STUDY", **asked, **counts))
    assert statuses == [0xFF00, 0]
    assert study.PatientName == "Doe^Jane"
    assert study.StudyInstanceUID == "1.2.1"
    assert sorted(study.ModalitiesInStudy) == ["CT", "SR"]
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 3)
    assert (study.RetrieveAETitle, study.InstanceAvailability) == ("CLOISTER", "ONLINE")
    assert study.QueryRetrieveLevel == "STUDY"
    assert "StudyTime" not in study


def test_names_are_matched_and_answered_in_any_alphabet(filled: Node) -> None:
    ds = identifier("PATIENT", PatientID="", NumberOfPatientRelatedStudies="")
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = "Müller*"
    _, (patient,) = find(filled, ds, PATIENT_FIND)
    assert patient.SpecificCharacterSet == "ISO_IR 192"
    assert str(patient.PatientName) == "Müller^Jörg"
    assert patient.NumberOfPatientRelatedStudies == 1


def test_series_and_images_are_found_below_their_study(filled: Node) -> None:
    _, series = find(filled, identifier("SERIES", **SERIES_OF_ONE))
    assert [one.SeriesInstanceUID for one in series] == ["1.2.1.1", "1.2.1.2"]
    keys = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "SOPInstanceUID": "", "Rows": ""}
    _, images = find(filled, identifier("IMAGE", **keys, InstanceNumber=""))
    assert [one.InstanceNumber for one in images] == [1, 2]
    assert images[0].Rows == 16


def test_a_key_that_means_nothing_here_is_said_so(filled: Node) -> None:
    statuses, (study,) = find(filled, identifier("STUDY", StudyInstanceUID="1.2.2", InstitutionName="X"))
    assert statuses == [0xFF01, 0]
    assert "InstitutionName" not in study


@pytest.mark.parametrize(
    "ds",
    [
        identifier("IMAGES", StudyInstanceUID="1.2.1"),
        identifier("PATIENT", PatientID="P1"),
        identifier("SERIES", SeriesInstanceUID="1.2.1.1"),
        identifier("SERIES", StudyInstanceUID="1.2.1\\1.2.2"),
        identifier("IMAGE", StudyInstanceUID="1.2.1", SOPInstanceUID=""),
        identifier("STUDY", StudyDate="2024"),
        identifier("STUDY", PatientID="*a" * 11),
    ],
    ids=[
        "level",
        "other_model",
        "no_study",
        "two_studies",
        "no_series",
        "date",
        "wild",
    ],
)
def test_an_identifier_without_meaning_is_refused(filled: Node, ds: Dataset) -> None:
    assert find(filled, ds)[0] == [0xA900]


def test_a_broken_identifier_is_refused_and_the_association_goes_on(filled: Node) -> None:
    association = associate(filled, [(STUDY_FIND, [EXPLICIT])])
    broken = identifier("STUDY", StudyInstanceUID="")
    broken.add_new(0x00100020, "UN", b"\xff\xfe\xfd")
    broken.add_new(0x00100040, "OB", b"\x00\x01")
    assert [int(status.Status) for status, _ in association.send_c_find(broken, STUDY_FIND)] == [0xA900]
    whole = identifier("STUDY", StudyInstanceUID="1.2.1")
    assert [int(status.Status) for status, _ in association.send_c_find(whole, STUDY_FIND)] == [0xFF00, 0]
    association.release()


def test_who_may_not_query_gets_no_context_for_it(filled: Node) -> None:
    contexts = [(STUDY_FIND, [EXPLICIT]), (STUDY_GET, [EXPLICIT]), (STUDY_MOVE, [EXPLICIT]), (CT, [EXPLICIT])]
    association = associate(filled, contexts, title="SCANNER")
    assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [CT]
    association.release()


def test_who_may_query_alone_sends_nothing(filled: Node) -> None:
    association = associate(filled, [(CT, [EXPLICIT]), (STUDY_FIND, [EXPLICIT])])
    assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [STUDY_FIND]
    association.release()
    role = build_role(CT, scu_role=True, scp_role=True)
    association = associate(filled, [(CT, [EXPLICIT]), (STUDY_GET, [EXPLICIT])], ext_neg=[role])
    (context,) = [one for one in association.accepted_contexts if str(one.abstract_syntax) == CT]
    assert (context.as_scu, context.as_scp) == (False, True)
    association.release()


@pytest.fixture
def many(filled: Node) -> Iterator[ManyMatches]:
    """Run a second SCP on a catalogue of very many studies."""
    found = ManyMatches(filled.zone)
    inbox = Inbox(filled.zone.root / "other_inbox", min_free_bytes=1)
    services = [find_service(found, "CLOISTER")]
    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, filled.callers, Heard(), services)
    found.port = scp.start()
    yield found
    scp.stop()


class ManyMatches(DatabaseCatalogue):
    """A catalogue of as many studies as a test wants."""

    number = 20_000
    port = 0

    def find(self, query: Query) -> list[dict[str, str]]:
        """Return so many studies, or the limit."""
        found = super().find(Query(Level.STUDY, {"StudyInstanceUID": "1.2.1"}))[0]
        return [{**found, "StudyInstanceUID": f"1.2.9.{n}"} for n in range(min(self.number, query.limit))]


def test_a_query_can_be_cancelled(many: ManyMatches) -> None:
    ae = AE(ae_title="WORKSTATION")
    ae.add_requested_context(STUDY_FIND, EXPLICIT)
    association = ae.associate("127.0.0.1", many.port, ae_title="CLOISTER")
    statuses = []
    for number, (status, _) in enumerate(association.send_c_find(identifier("STUDY"), STUDY_FIND, msg_id=5)):
        statuses.append(int(status.Status))
        if number == 20:
            association.send_c_cancel(5, query_model=STUDY_FIND)
    assert statuses[-1] == 0xFE00
    assert len(statuses) < 5_000
    association.release()


@pytest.mark.dcmtk
@pytest.mark.slow
def test_ten_thousand_matches_are_answered_and_no_more(many: ManyMatches) -> None:
    command = ["-v", "-S", "-aet", "WORKSTATION", "-aec", "CLOISTER", "-k", "QueryRetrieveLevel=STUDY"]
    done = dcmtk("findscu", *command, "127.0.0.1", str(many.port))
    text = done.stdout + done.stderr
    assert text.count("(Pending)") == 10_000
    assert "OutOfResources" in text
    many.number = 10_000
    done = dcmtk("findscu", *command, "127.0.0.1", str(many.port))
    assert "OutOfResources" not in done.stdout + done.stderr
