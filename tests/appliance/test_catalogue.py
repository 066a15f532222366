from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import update

from appliance import cataloguing, node
from appliance.catalogue import DatabaseCatalogue
from appliance.db.base import new_id
from appliance.db.clinical import Instance, ModelVersion, Result, Study, StudyRevision
from appliance.db.engine import reading, writing
from appliance.filing import index_batch, open_inbox
from appliance.settings import Settings, ZoneSettings
from dicom_node.inbox import Announcement
from dicom_node.ports import Caller
from dicom_node.query import Level, Query, QueryError
from tests.dicom_node.support import ct, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLER = Caller("CT1", "CLOISTER", "127.0.0.1")
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ABSENT = ("IssuerOfPatientID", "StudyDate", "StudyDescription", "BodyPartExamined")


@pytest.fixture
def zone(clinical_url: str, tmp_path: Path) -> Iterator[node.ClinicalZone]:
    settings = Settings(data_root=tmp_path / "data", clinical=ZoneSettings(database_url=clinical_url))
    node.create_node(settings, "clinical")
    opened = node.open_clinical(settings)
    yield opened
    opened.engine.dispose()


def receive(zone: node.ClinicalZone, **values: Any) -> str:
    uid = str(generate_uid())
    absent = dict.fromkeys(ABSENT)
    ds = ct({"SOPInstanceUID": uid, **absent, **values})
    inbox = open_inbox(zone)
    inbox.commit([encoded(ds)], CALLER, Announcement(CT, uid, EXPLICIT))
    index_batch(zone, inbox)
    return uid


@pytest.fixture
def filled(zone: node.ClinicalZone) -> node.ClinicalZone:
    """Return a zone with two patients, three studies, four series and five instances."""
    one = {"PatientID": "P1", "PatientName": "Doe^Jane", "PatientSex": "F", "StudyInstanceUID": "1.2.1"}
    early = {**one, "StudyDate": "20240105", "StudyTime": "081500", "AccessionNumber": "A[1]"}
    receive(zone, **early, SeriesInstanceUID="1.2.1.1", Modality="CT", SeriesNumber="2", InstanceNumber="10")
    receive(zone, **early, SeriesInstanceUID="1.2.1.1", Modality="CT", SeriesNumber="2", InstanceNumber="9")
    receive(zone, **early, SeriesInstanceUID="1.2.1.2", Modality="SR", SeriesNumber="10", InstanceNumber="1")
    late = {**one, "StudyInstanceUID": "1.2.2", "StudyDate": "20240301", "StudyTime": "170000"}
    receive(zone, **late, SeriesInstanceUID="1.2.2.1", Modality="MR", SeriesDescription="T2 *axial")
    other = {"PatientID": "P2", "PatientName": "Roe^Max=Ro^Ma", "StudyInstanceUID": "1.2.3"}
    receive(zone, **other, SeriesInstanceUID="1.2.3.1", Modality="CR", StationName="XR_1")
    return zone


def studies(zone: node.ClinicalZone, **match: str) -> list[str]:
    query = Query(Level.STUDY, match)
    found = DatabaseCatalogue(zone).find(query)
    assert DatabaseCatalogue(zone).count(query) == len(found)
    return [item["StudyInstanceUID"] for item in found]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({}, ["1.2.2", "1.2.1", "1.2.3"]),
        ({"PatientID": "P1"}, ["1.2.2", "1.2.1"]),
        ({"PatientID": "p1"}, []),
        ({"PatientID": "P*"}, ["1.2.2", "1.2.1", "1.2.3"]),
        ({"PatientID": "p*"}, []),
        ({"PatientName": "doe^JANE"}, ["1.2.2", "1.2.1"]),
        ({"PatientName": "*jane"}, ["1.2.2", "1.2.1"]),
        ({"PatientName": "Ro^Ma"}, ["1.2.3"]),
        ({"PatientName": "Ro"}, []),
        ({"PatientName": "*"}, ["1.2.2", "1.2.1", "1.2.3"]),
        ({"StudyDate": "20240105"}, ["1.2.1"]),
        ({"StudyDate": "20240105-"}, ["1.2.2", "1.2.1"]),
        ({"StudyDate": "-20240105"}, ["1.2.1"]),
        ({"StudyTime": "08"}, ["1.2.1"]),
        ({"StudyTime": "0816-17"}, ["1.2.2"]),
        ({"AccessionNumber": "A[1]"}, ["1.2.1"]),
        ({"AccessionNumber": "A[?]"}, ["1.2.1"]),
        ({"AccessionNumber": "A_1%"}, []),
        ({"StudyInstanceUID": "1.2.1\\1.2.3"}, ["1.2.1", "1.2.3"]),
        ({"ModalitiesInStudy": "SR"}, ["1.2.1"]),
        ({"ModalitiesInStudy": "MR\\SR"}, ["1.2.2", "1.2.1"]),
        ({"ModalitiesInStudy": "M?"}, ["1.2.2"]),
    ],
    ids=str,
)
def test_keys_match_as_the_standard_says(
    filled: node.ClinicalZone, match: dict[str, str], expected: list[str]
) -> None:
    assert studies(filled, **match) == expected


def test_each_level_carries_what_belongs_to_it_and_to_those_above(filled: node.ClinicalZone) -> None:
    catalogue = DatabaseCatalogue(filled)
    (study,) = catalogue.find(Query(Level.STUDY, {"StudyInstanceUID": "1.2.1"}))
    assert study["NumberOfStudyRelatedSeries"] == "2"
    assert study["NumberOfStudyRelatedInstances"] == "3"
    assert study["ModalitiesInStudy"] == "CT\\SR"
    series = catalogue.find(Query(Level.SERIES, {"StudyInstanceUID": "1.2.1"}))
    assert [(one["SeriesNumber"], one["NumberOfSeriesRelatedInstances"]) for one in series] == [
        ("2", "2"),
        ("10", "1"),
    ]
    assert series[0]["PatientName"] == "Doe^Jane"
    instances = catalogue.find(Query(Level.IMAGE, {"SeriesInstanceUID": "1.2.1.1"}))
    assert [one["InstanceNumber"] for one in instances] == ["9", "10"]
    assert instances[0]["AvailableTransferSyntaxUID"] == EXPLICIT
    patients = catalogue.find(Query(Level.PATIENT))
    assert [(one["PatientID"], one["NumberOfPatientRelatedStudies"]) for one in patients] == [
        ("P1", "2"),
        ("P2", "1"),
    ]


def test_keys_of_series_and_instances_match(filled: node.ClinicalZone) -> None:
    catalogue = DatabaseCatalogue(filled)
    assert len(catalogue.find(Query(Level.SERIES, {"SeriesNumber": "2"}))) == 1
    assert len(catalogue.find(Query(Level.SERIES, {"StationName": "xr_?"}))) == 1
    assert len(catalogue.find(Query(Level.IMAGE, {"InstanceNumber": "9", "PatientID": "P1"}))) == 1
    assert len(catalogue.find(Query(Level.IMAGE, {"SOPClassUID": CT}))) == 5


def test_pages_join_to_the_whole_answer(filled: node.ClinicalZone) -> None:
    add_result(filled, "1.2.1")
    catalogue = DatabaseCatalogue(filled)
    for level in (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE):
        whole = catalogue.find(Query(level))
        pages = [catalogue.find(Query(level, limit=1, offset=number)) for number in range(len(whole) + 1)]
        assert [one for page in pages for one in page] == whole
        assert catalogue.count(Query(level)) == len(whole)


def test_results_are_found_unless_shadow_or_superseded(filled: node.ClinicalZone) -> None:
    row_id = add_result(filled, "1.2.3")
    catalogue = DatabaseCatalogue(filled)
    (study,) = catalogue.find(Query(Level.STUDY, {"StudyInstanceUID": "1.2.3"}))
    assert study["NumberOfStudyRelatedInstances"] == "2"
    assert study["ModalitiesInStudy"] == "CR\\SR"
    assert len(catalogue.find(Query(Level.SERIES, {"StudyInstanceUID": "1.2.3"}))) == 2
    assert len(catalogue.instances("1.2.3")) == 2
    assert studies(filled, ModalitiesInStudy="SR") == ["1.2.1", "1.2.3"]
    with writing(filled.engine) as session:
        session.get_one(Result, row_id).superseded = True
    assert len(catalogue.instances("1.2.3")) == 1


def test_instances_are_those_of_study_series_or_one(filled: node.ClinicalZone) -> None:
    catalogue = DatabaseCatalogue(filled)
    assert len(catalogue.instances("1.2.1")) == 3
    series = catalogue.instances("1.2.1", "1.2.1.1")
    assert len(series) == 2
    assert all(one.path.is_file() for one in series)
    assert catalogue.instances("1.2.1", "1.2.1.1", series[1].sop_instance_uid) == [series[1]]
    assert catalogue.instances("1.2.2", "1.2.1.1") == []


@pytest.mark.parametrize(
    ("match", "code"),
    [
        ({"StudyDate": "2024"}, "bad_value"),
        ({"StudyDate": "-"}, "bad_value"),
        ({"StudyTime": "25"}, "bad_value"),
        ({"PatientID": "a\0b"}, "bad_value"),
        ({"PatientID": "x" * 401}, "too_long"),
        ({"PatientID": "*a" * 11}, "too_many_wildcards"),
        ({"Modality": "CT"}, "unknown_key"),
    ],
)
def test_a_query_without_meaning_is_refused_without_its_value(
    filled: node.ClinicalZone, match: dict[str, str], code: str
) -> None:
    with pytest.raises(QueryError) as error:
        DatabaseCatalogue(filled).find(Query(Level.STUDY, match))
    assert error.value.code == code
    assert next(iter(match)) in str(error.value)


def test_rows_of_an_earlier_edition_are_filled_again(filled: node.ClinicalZone) -> None:
    with writing(filled.engine) as session:
        session.execute(update(Instance).values(catalogued=0, instance_number=""))
        session.execute(update(Study).values(study_time=""))
    assert cataloguing.fill(filled) == 5
    assert cataloguing.fill(filled) == 0
    assert len(DatabaseCatalogue(filled).find(Query(Level.IMAGE, {"InstanceNumber": "10"}))) == 1
    assert studies(filled, StudyTime="08") == ["1.2.1"]


def test_a_file_that_cannot_be_read_does_not_hold_up_the_others(filled: node.ClinicalZone) -> None:
    catalogue = DatabaseCatalogue(filled)
    gone = catalogue.instances("1.2.3")[0]
    gone.path.unlink()
    with writing(filled.engine) as session:
        session.execute(update(Instance).values(catalogued=0))
    assert cataloguing.fill(filled) == 5
    assert cataloguing.fill(filled) == 0


def add_result(zone: node.ClinicalZone, study_uid: str) -> str:
    uid = generate_uid()
    path = zone.root / "results" / f"{new_id()}.dcm"
    path.parent.mkdir(exist_ok=True)
    source = DatabaseCatalogue(zone).instances(study_uid)[0].path
    ds = dcmread(source)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.SeriesInstanceUID, ds.Modality, ds.SeriesNumber = str(generate_uid()), "SR", 900
    ds.save_as(path)
    with reading(zone.engine) as session:
        study = session.query(Study).filter_by(study_instance_uid=study_uid).one()
    with writing(zone.engine) as session:
        model = ModelVersion(name="m", version="1", package_sha256=new_id(), path="m")
        revision = StudyRevision(study_id=study.id, number=1, instance_count=1)
        session.add_all([model, revision])
        session.flush()
        result = Result(
            study_id=study.id,
            study_revision_id=revision.id,
            model_version_id=model.id,
            kind="sr",
            sop_class_uid=CT,
            sop_instance_uid=str(uid),
            path=str(path.relative_to(zone.root)),
        )
        session.add(result)
        session.flush()
        row_id = result.id
    assert cataloguing.fill(zone) == 1
    return row_id
