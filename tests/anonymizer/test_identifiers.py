from __future__ import annotations

import unicodedata

import pytest
from pydicom.sequence import Sequence

from anonymizer.engine import Quarantined, deidentify
from anonymizer.rules import rule_for
from anonymizer.verify.identifiers import IDENTIFYING, NAMING
from tests.anonymizer.material import CONTEXT, STUDY_UID, ct, encode, item, release, stop
from tests.anonymizer.residue import find_residue, identifiers_of


def region(meaning: str) -> Sequence:
    """Return a code whose meaning is required: the engine cannot take it away."""
    return Sequence([item(CodeValue="1", CodingSchemeDesignator="SCT", CodeMeaning=meaning)])


def test_the_identifiers_of_an_instance_are_gathered() -> None:
    ds = ct()
    ds.OtherPatientIDsSequence = Sequence([item(PatientID="ALT-1")])
    found = identifiers_of(ds, known={ds.SOPClassUID})
    for expected in (
        "MRN-4711-X",
        "MRN4711X",
        "ALT-1",
        "ACC-998877",
        "19560708",
        "1956-07-08",
        "08.07.1956",
        "Müstermann",
        "Jörg",
        STUDY_UID,
    ):
        assert expected in found
    assert ds.SOPClassUID not in found


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("Li^Wu", "Li Wu"), ("Li^Wu", "Wu, Li"), ("Li^Wu", "LIWU"), ("Li^Wu", "x li^wu y"),
        ("王^伟", "王伟"), ("王^伟", "病人王 伟"), ("王^伟", "患者王伟先生"), ("김^민", "김^민"),
        ("Wang^Xi=王^西", "王西"), ("Doe^J", "J. Doe"), ("Müller^Jo", "MUELLER"), ("Müller^Jo", "Muller"),
        ("Müller^Jo", unicodedata.normalize("NFD", "Müller")), ("Ng^A^Bo", "A Bo"), ("Roth^Ada", "AdaRoth"),
    ],
)  # fmt: skip
def test_a_name_of_whatever_length_and_form_stops_the_instance(name: str, copy: str) -> None:
    ds = ct()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.AnatomicRegionSequence = name, region(copy)
    found = stop(ds)
    assert (found.reason_code, "(0008,2218)>(0008,0104)" in found.reason) == ("residual_identifier", True)


@pytest.mark.parametrize("vr", [b"LO", b"SH"])
def test_a_patient_name_of_another_vr_is_a_name(vr: bytes) -> None:
    ds = ct()
    ds.PatientName, ds.AnatomicRegionSequence = "Uvwxyz^Abc", region("Uvwxyz")
    content = encode(ds).replace(b"\x10\0\x10\0PN", b"\x10\0\x10\0" + vr)
    assert stop(content).reason_code == "residual_identifier"


@pytest.mark.parametrize(
    "copy", ["08.07.1956", "8.7.1956", "07/08/1956", "7-8-1956", "1956 07 08", "08071956", "*08.07.1956 M"]
)
@pytest.mark.parametrize("born", ["19560708", "1956.07.08"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_the_birth_date_as_people_write_it_stops_the_instance(born: str, copy: str) -> None:
    ds = ct()
    ds.PatientBirthDate, ds.AnatomicRegionSequence = born, region(copy)
    assert stop(ds).reason_code == "residual_identifier"


@pytest.mark.parametrize(
    ("patient_id", "copy"),
    [
        ("MRN-4711-X", "MRN4711X"), ("MRN-4711-X", "mrn 4711 x"), ("MRN4711X", "MRN-4711-X"),
        ("0012345678", "12345678"), ("5345678", "0005345678"), ("98.765.432", "98765432"),
        ("4711", "no 4711"),
    ],
)  # fmt: skip
def test_a_patient_id_with_other_separators_or_zeros_stops_the_instance(patient_id: str, copy: str) -> None:
    ds = ct(patient_id)
    ds.AnatomicRegionSequence = region(copy)
    assert stop(ds).reason_code == "residual_identifier"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("IssuerOfPatientID", "Issuer-Klinik"), ("StudyID", "STUDY4711"), ("StudyID", "47112"),
        ("StationName", "CT07"), ("StationName", "CTRAUM"), ("DeviceSerialNumber", "SN-778899"),
        ("InstitutionName", "Klinikum Ort"), ("InstitutionName", "Klinikum"),
        ("StudyDescription", "Verlauf nach Sturz vom Dach"), ("ProtocolName", "Studie XY-2291"),
    ],
)  # fmt: skip
def test_the_hospital_s_own_names_and_numbers_in_a_kept_attribute_stop_the_instance(
    keyword: str, value: str
) -> None:
    ds = ct()
    setattr(ds, keyword, value)
    ds.AnatomicRegionSequence = region(f"x {value.upper()}")
    assert stop(ds).reason_code == "residual_identifier"


def test_a_nested_number_of_a_request_in_a_kept_attribute_stops_the_instance() -> None:
    ds = ct()
    ds.RequestAttributesSequence = Sequence([item(RequestedProcedureID="RP-556677")])
    ds.AnatomicRegionSequence = region("RP-556677")
    assert stop(ds).reason_code == "residual_identifier"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyID", "1"), ("StationName", "CT"), ("StudyDescription", "CHEST"), ("ProtocolName", "HEAD"),
        ("SeriesDescription", "Model 1"), ("InstitutionName", "Maker"), ("AccessionNumber", "1"),
        ("InstitutionName", "SIEMENS"), ("PatientID", "00000000012"), ("StudyDescription", "Brain-MRA"),
        ("ReferringPhysicianName", "M"), ("StudyDescription", "REMOVED"),
    ],
)  # fmt: skip
def test_ordinary_words_and_small_numbers_stop_nothing(keyword: str, value: str) -> None:
    ds = ct()
    setattr(ds, keyword, value)
    ds.Manufacturer = f"{value} Maker" if value in {"1", "SIEMENS", "Brain-MRA", "M"} else "Maker 12"
    assert release(ds)


def test_a_removed_text_outside_its_character_set_stops_nothing() -> None:
    ds = ct()
    ds.ReferringPhysicianName, ds.PatientName, ds.InstitutionName = "A", "Doe^Jane", "Spital Süd"
    content = encode(ds).replace(b"ISO_IR 100", b"          ")
    assert not isinstance(deidentify(content, CONTEXT), Quarantined)


def test_the_same_word_in_another_normal_form_is_residue() -> None:
    ds = item(Manufacturer="cafe\u0301 Zu\u0308rich")
    assert [residue.identifier for residue in find_residue(ds, ["Zürich", "Café", "Genf"])] == [0, 1]


def test_what_names_the_hospital_is_never_an_attribute_that_the_rules_keep() -> None:
    assert [hex(tag) for tag in NAMING | IDENTIFYING if rule_for(tag) is None] == []
    ds = ct()
    ds.DeviceSequence = Sequence([item(DeviceID="CATH-7F", Manufacturer="Maker")])
    assert release(ds)
