from __future__ import annotations

import io
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)

from anonymizer.dates import shift_days
from anonymizer.engine import Context, Quarantined, Released, deidentify, deidentify_file
from tests.anonymizer.material import (
    CONTEXT,
    OTHER,
    SOP_UID,
    STUDY_UID,
    Marks,
    ct,
    encode,
    item,
    planted,
    release,
    stop,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.uid import UID

KEPT = (
    "Modality Manufacturer BodyPartExamined Rows Columns PixelSpacing ImagePositionPatient RescaleSlope"
    " RescaleIntercept WindowCenter SliceThickness KVP InstanceNumber PixelData BitsStored ImageType"
)
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
]  # fmt: skip


@pytest.mark.parametrize("transfer_syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_no_planted_mark_survives(transfer_syntax: UID) -> None:
    marks = Marks()
    outcome = release(encode(planted(marks), transfer_syntax, marks=marks))
    readable = outcome.content
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        buffer = io.BytesIO()
        outcome.ds.save_as(buffer, implicit_vr=False, little_endian=True)
        readable = buffer.getvalue()
    assert len(marks.where) > 80
    assert marks.survivors(readable) == []
    assert outcome.ds.file_meta.TransferSyntaxUID == transfer_syntax


@pytest.mark.parametrize("transfer_syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_what_research_needs_stays_as_it_was(transfer_syntax: UID) -> None:
    before = dcmread(io.BytesIO(encode(ct(), transfer_syntax)))
    after = release(encode(ct(), transfer_syntax)).ds
    for keyword in KEPT.split():
        assert after[keyword].value == before[keyword].value, keyword


def test_the_report_says_what_is_in_the_file() -> None:
    outcome = release(ct())
    ds, released = outcome.ds, outcome.released
    assert ds.PatientID == ds.PatientName == released.pseudonym
    assert ds.StudyInstanceUID == released.study_instance_uid != STUDY_UID
    assert ds.SeriesInstanceUID == released.series_instance_uid
    assert (
        ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == released.sop_instance_uid != SOP_UID
    )
    assert (released.modality, released.size_bytes) == ("CT", len(outcome.content))
    assert released.sha256 == sha256(outcome.content).hexdigest()


def test_the_deidentification_attributes_are_written() -> None:
    ds = ct()
    ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified = "NO", "UNMODIFIED"
    ds.DeidentificationMethodCodeSequence = Sequence([item(CodeValue="113100", CodeMeaning="by Dr Doe")])
    after = release(ds).ds
    assert after.PatientIdentityRemoved == "YES"
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [(code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning)
             for code in after.DeidentificationMethodCodeSequence]  # fmt: skip
    assert codes == [  # PS3.16 CID 7050
        ("113100", "DCM", "Basic Application Confidentiality Profile"),
        ("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ]


def test_an_instance_that_claims_to_be_deidentified_is_deidentified() -> None:
    ds = ct()
    ds.PatientIdentityRemoved, ds.BurnedInAnnotation, ds.RecognizableVisualFeatures = "YES", "NO", "NO"
    after = release(ds).ds
    assert after.PatientID != ds.PatientID
    assert "PatientAge" not in after


def test_dates_of_one_patient_keep_their_distance_and_the_birth_date_goes() -> None:
    days = shift_days(CONTEXT.keys, "MRN-4711-X", "", CONTEXT.max_date_shift_days)
    after = release(ct()).ds
    assert 1 <= days <= 365
    assert after.StudyDate < "20240229"
    assert after.PatientBirthDate == ""
    assert (after.StudyTime, after.ContentTime) == ("101112.5", "000102")
    assert after.StudyDate == after.SeriesDate == after.AcquisitionDate


def test_a_malformed_date_is_dropped_or_replaced_by_its_type() -> None:
    ds = ct()
    with pytest.warns(UserWarning, match="Invalid value"):
        ds.StudyDate, ds.SeriesDate = "DOE.1999", "DOE.1999"
    after = release(ds).ds
    assert after.StudyDate == ""  # type 2
    assert "SeriesDate" not in after  # type 3


def test_equal_input_and_key_give_equal_bytes() -> None:
    assert release(ct()).content == release(ct()).content


def test_another_project_key_leaves_no_common_identifier() -> None:
    first, second = release(ct()).ds, release(ct(), OTHER).ds
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        assert first[keyword].value != second[keyword].value


def test_references_between_instances_stay_true() -> None:
    first, second = ct(), ct()
    second.SOPInstanceUID = "1.3.6.1.4.1.99999.7.33"
    reference = item(ReferencedSOPClassUID=first.SOPClassUID, ReferencedSOPInstanceUID=first.SOPInstanceUID)
    second.StudiesContainingOtherReferencedInstancesSequence = Sequence(
        [
            item(
                StudyInstanceUID=first.StudyInstanceUID,
                ReferencedSeriesSequence=Sequence(
                    [
                        item(
                            SeriesInstanceUID=first.SeriesInstanceUID,
                            ReferencedInstanceSequence=Sequence([reference]),
                        )
                    ]
                ),
            )
        ]
    )
    after = release(second).ds
    referenced = after.StudiesContainingOtherReferencedInstancesSequence[0]
    instance = referenced.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert instance.ReferencedSOPInstanceUID == release(first).released.sop_instance_uid
    assert instance.ReferencedSOPClassUID == first.SOPClassUID
    assert referenced.StudyInstanceUID == after.StudyInstanceUID


def test_a_second_pass_removes_nothing_more() -> None:
    once = release(planted(Marks()))
    twice = release(once.content, OTHER)
    assert [e.tag for e in once.ds.iterall()] == [e.tag for e in twice.ds.iterall()]
    changed = {
        a.VR
        for a, b in zip(once.ds.iterall(), twice.ds.iterall(), strict=True)
        if a.VR != "SQ" and a.value != b.value
    }
    assert changed <= {"UI", "DA", "DT", "PN", "LO"}
    assert {
        a.keyword for a, b in zip(once.ds, twice.ds, strict=True) if a.VR == "LO" and a.value != b.value
    } == {"PatientID"}


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("BurnedInAnnotation", "YES", "burned_in_annotation"),
        ("BurnedInAnnotation", "OTHER", "burned_in_annotation"),
        ("RecognizableVisualFeatures", "YES", "recognizable_features"),
        ("ConversionType", "WSD", "secondary_capture"),
        ("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"], "burnt_in_text_likely"),
        ("ImageType", ["DERIVED", "SECONDARY", "DOSE_INFO"], "burnt_in_text_likely"),
        ("PhotometricInterpretation", "RGB", "burnt_in_text_likely"),
        ("SOPClassUID", SecondaryCaptureImageStorage, "secondary_capture"),
        ("SOPClassUID", UltrasoundImageStorage, "burnt_in_text_likely"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.33", "structured_report"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.104.1", "encapsulated_document"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.11.1", "graphic_annotation"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66", "opaque_content"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.77.1.4", "recognizable_features"),
        ("SOPClassUID", "1.2.3.4.5", "unknown_sop_class"),
        ("PatientID", "", "unusable_patient_id"),
        ("PatientID", "ANONYMOUS", "unusable_patient_id"),
        ("StudyInstanceUID", "", "missing_uid"),
        ("SOPInstanceUID", "../../etc/passwd", "missing_uid"),
        ("StudyInstanceUID", "1.2.840.10008.1.1", "well_known_uid"),
        ("SeriesInstanceUID", "1.2.840.10008.1.4.1.1", "well_known_uid"),
        ("SOPInstanceUID", CTImageStorage, "well_known_uid"),
        ("Rows", 9, "pixel_data_mismatch"),
        ("BitsAllocated", 8, "pixel_data_mismatch"),
        ("SamplesPerPixel", 7, "pixel_data_mismatch"),
        ("SpecificCharacterSet", "ISO_IR 4711", "unknown_charset"),
    ],
)
def test_what_cannot_be_judged_waits_with_a_reason(keyword: str, value: Any, code: str) -> None:
    ds = ct()
    if value == "../../etc/passwd":
        content = encode(ds).replace(SOP_UID.encode(), str(value).ljust(len(SOP_UID), "\0").encode())
        assert stop(content).reason_code == code
        return
    if keyword == "SpecificCharacterSet":
        content = encode(ds).replace(b"ISO_IR 100", b"ISO_IR 999")
        assert stop(content).reason_code == code
        return
    setattr(ds, keyword, value)
    found = stop(ds)
    assert found.reason_code == code
    assert found.reason
    assert "MRN-4711" not in found.reason


def test_missing_pixel_data_waits() -> None:
    ds = ct()
    del ds.PixelData
    assert stop(ds).reason_code == "pixel_data_missing"


def test_text_that_its_charset_cannot_decode_waits() -> None:
    ds = ct()
    ds.SpecificCharacterSet = "ISO_IR 192"
    content = encode(ds).replace("Müstermann".encode(), b"M\xfcstermannX")
    assert stop(content).reason_code == "undecodable_text"


def test_non_ascii_text_without_a_charset_waits() -> None:
    content = encode(ct())
    at = content.index(b"ISO_IR 100")
    assert stop(content[:at] + b" " * 10 + content[at + 10 :]).reason_code == "undecodable_text"


def test_several_values_of_patient_id_wait() -> None:
    content = encode(ct()).replace(b"MRN-4711-X", b"MRN\\4711-X")
    assert stop(content).reason_code == "unusable_patient_id"


def test_several_issuers_of_a_patient_id_wait() -> None:
    ds = ct()
    ds.IssuerOfPatientID = ["HOSPITAL-A", "HOSPITAL-B"]
    assert stop(ds).reason_code == "unusable_patient_id"


def test_overlays_in_unused_pixel_bits_wait() -> None:
    ds = ct()
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    assert stop(ds).reason_code == "overlay_in_pixels"


@pytest.mark.parametrize("keyword", ["Manufacturer", "ConvolutionKernel", "FilterType"])
@pytest.mark.parametrize("identifier", ["MRN-4711-X", "müstermann", "JÖRG", "ACC-998877"])
def test_an_identifier_in_an_attribute_that_need_not_be_there_takes_it_away(
    keyword: str, identifier: str
) -> None:
    ds = ct()
    setattr(ds, keyword, f"x {identifier}")
    out = release(ds).ds
    assert out.get(keyword, "") == ""
    assert out.KVP == 120


@pytest.mark.parametrize("identifier", ["MRN-4711-X", "müstermann", "JÖRG", "ACC-998877"])
def test_an_identifier_in_a_required_attribute_stops_the_instance(identifier: str) -> None:
    ds = ct()
    code = item(CodeValue="1", CodingSchemeDesignator="SCT", CodeMeaning=f"chest {identifier} ap")
    ds.AnatomicRegionSequence = Sequence([code])
    found = stop(ds)
    assert found.reason_code == "residual_identifier"
    assert identifier.casefold() not in found.reason.casefold()


def test_an_original_uid_in_a_text_stops_the_instance() -> None:
    ds = ct()
    ds.SoftwareVersions = f"from {STUDY_UID}"
    assert stop(ds).reason_code == "residual_identifier"


def test_a_value_of_the_wrong_vr_is_not_kept() -> None:
    ds = ct()
    ds.add_new("TableHeight", "LO", "DOE^JOHN")
    assert "TableHeight" not in release(ds).ds


def test_a_required_value_of_the_wrong_vr_stops_the_instance() -> None:
    ds = ct()
    del ds["ImageOrientationPatient"]
    ds.add_new("ImageOrientationPatient", "LO", "DOE^JOHN")
    assert stop(ds).reason_code == "unfit_value"


def test_patients_are_told_apart_by_issuer() -> None:
    ds = ct()
    ds.IssuerOfPatientID = "HOSPITAL-A"
    assert release(ds).released.pseudonym != release(ct()).released.pseudonym
    assert "IssuerOfPatientID" not in release(ds).ds


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "in.dcm", tmp_path / "out.dcm"
    source.write_bytes(encode(ct()))
    outcome = deidentify_file(source, target, CONTEXT)
    assert isinstance(outcome, Released)
    assert sha256(target.read_bytes()).hexdigest() == outcome.sha256
    source.write_bytes(encode(ct(patient_id="UNKNOWN")))
    stopped = tmp_path / "stopped.dcm"
    assert isinstance(deidentify_file(source, stopped, CONTEXT), Quarantined)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.dcm", "out.dcm"]


def test_dates_of_a_pet_keep_the_time_between_injection_and_scan() -> None:
    ds = ct()
    ds.SOPClassUID, ds.Modality = PositronEmissionTomographyImageStorage, "PT"
    ds.RadiopharmaceuticalInformationSequence = Sequence([
        item(RadiopharmaceuticalStartTime="093000", RadionuclideTotalDose="350000000",
             RadiopharmaceuticalStartDateTime="20240229093000.0+0100"),
    ])  # fmt: skip
    after = release(ds).ds
    injection = after.RadiopharmaceuticalInformationSequence[0]
    assert injection.RadiopharmaceuticalStartTime == "093000"
    assert injection.RadiopharmaceuticalStartDateTime == f"{after.SeriesDate}093000.0"
    assert injection.RadionuclideTotalDose == 350000000


def test_the_shift_limit_is_the_context_s() -> None:
    outcome = deidentify(encode(ct()), Context(CONTEXT.keys, "trial", max_date_shift_days=1))
    assert not isinstance(outcome, Quarantined)
    ds: Dataset = dcmread(io.BytesIO(b"".join(outcome[1])))
    assert (ds.StudyDate, ds.ContentDate) == ("20240228", "20240229")


def test_the_limit_of_a_deflated_data_set_is_the_context_s() -> None:
    content = encode(ct(rows=64, columns=64), DeflatedExplicitVRLittleEndian)
    found = deidentify(content, Context(CONTEXT.keys, "trial", max_inflated_bytes=4096))
    assert isinstance(found, Quarantined)
    assert found.reason_code == "inflated_too_large"
    assert release(content)


@pytest.mark.parametrize(("number", "vr"), [(0x0026, "UR"), (0x0102, "OB"), (0x0039, "UC"), (0x003A, "OV")])
def test_file_meta_information_of_any_vr_is_read_over(number: int, vr: str) -> None:
    content = encode(ct())
    at = 144 + int.from_bytes(content[140:144], "little")  # behind (0002,0000) and what it counts
    head = b"\x02\0" + number.to_bytes(2, "little") + vr.encode("ascii")
    value = b"dicom://pacs.hospital.example:104/STORE ".ljust(40)
    planted = content[:at] + head + b"\0\0" + len(value).to_bytes(4, "little") + value + content[at:]
    assert release(planted).content == release(content).content
