from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from highdicom.sr import ComprehensiveSR
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000, ComprehensiveSRStorage, SecondaryCaptureImageStorage

from inference.errors import ResultError
from inference.preprocessing import prepare
from inference.results import picture
from inference.results.context import Answer, Predecessor, ResultContext
from inference.results.identity import PATIENT, STUDY, differing
from inference.results.picture import PICTURE_EDGE, as_seen, render
from inference.results.sc import build_capture
from inference.results.sr import build_report
from inference.results.uids import result_uid
from tests.inference.material import (
    EFFUSION,
    PNEUMONIA,
    make_card,
    make_context,
    make_instance,
    radiograph,
)
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from tests.inference.conftest import IODChecker

BUILDERS = [build_report, build_capture]
VENDORS = [
    "highdicom/data/test_files/dx_image.dcm",
    "pydicom-data/data_store/data/RG3_J2KR.dcm",
    "pydicom-data/data_store/data/RG1_J2KI.dcm",
    "dicom-test-files/data/WG04/JLSL/RG3_JLSL",
    "pydicom/src/pydicom/data/test_files/dicomdirtests/77654033/CR1/6154",
    "pydicom/src/pydicom/data/charset_files/chrArab.dcm",
    "pydicom/src/pydicom/data/charset_files/chrGreek.dcm",
    "pydicom/src/pydicom/data/charset_files/chrH31.dcm",
    "pydicom/src/pydicom/data/charset_files/chrI2.dcm",
    "pydicom/src/pydicom/data/charset_files/chrX2.dcm",
]


def _texts(ds: Dataset) -> list[str]:
    """Every text, number and code meaning of a content tree."""
    found = []
    for item in ds.ContentSequence:
        if "TextValue" in item:
            found.append(str(item.TextValue))
        if "ConceptCodeSequence" in item:
            found.append(str(item.ConceptCodeSequence[0].CodeMeaning))
        if "MeasuredValueSequence" in item:
            found.append(str(item.MeasuredValueSequence[0].NumericValue))
        if "ContentSequence" in item:
            found += _texts(item)
    return found


def _saved(ds: Dataset, path: Path) -> Dataset:
    ds.save_as(path, enforce_file_format=True)
    return dcmread(path)


@pytest.mark.dicom3tools
@pytest.mark.parametrize("build", BUILDERS)
def test_results_of_our_own_instances_pass_the_iod_checker(
    build: Any, tmp_path: Path, iod_checker: IODChecker
) -> None:
    sources = [
        make_instance(PatientOrientation=["L", "F"], ImagerPixelSpacing=[0.2, 0.2]),
        make_instance(PatientOrientation=["A", "F"], ImagerPixelSpacing=[0.2, 0.2]),
        make_instance(SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="CR"),
        make_instance(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2", Modality="MG", ImageLaterality="L"),
    ]
    previous = Predecessor(sources[0].StudyInstanceUID, "1.2.3", ComprehensiveSRStorage, "1.2.3.4")
    for number, context in enumerate(
        (
            make_context(sources[:1]),
            make_context(sources[:2], predecessors=(previous,)),
            make_context(sources[2:3], unreadable=2),
            make_context(
                sources[3:], card=make_card(findings=(PNEUMONIA, EFFUSION)), probabilities=[(0.1, 0.99)]
            ),
            make_context(
                [make_instance(StudyID=None, AccessionNumber=None, PatientSex=None, StudyTime=None)]
            ),
        )
    ):
        path = tmp_path / f"{number}.dcm"
        build(context).save_as(path, enforce_file_format=True)
        assert iod_checker.errors(path) == []


@pytest.mark.dicom3tools
@pytest.mark.real_data
@pytest.mark.parametrize("name", VENDORS)
def test_results_of_vendors_files_pass_the_iod_checker(
    name: str, tmp_path: Path, iod_checker: IODChecker
) -> None:
    source = dcmread(shared_data_dir() / "dicom" / name)
    context = make_context([source])
    for build in BUILDERS:
        path = tmp_path / f"{build.__name__}.dcm"
        build(context).save_as(path, enforce_file_format=True)
        assert iod_checker.errors(path) == []
        written = dcmread(path)
        for keyword in (*PATIENT, *STUDY):
            if keyword in source:
                assert written.get(keyword) == source.get(keyword)
        assert written.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")


@pytest.mark.parametrize("build", BUILDERS)
def test_results_carry_the_true_identity_and_the_study(build: Any, tmp_path: Path) -> None:
    source = make_instance()
    result = _saved(build(make_context([source])), tmp_path / "r.dcm")
    for keyword in (*PATIENT, *STUDY):
        assert result.get(keyword) == source.get(keyword), keyword
    assert result.SeriesInstanceUID != source.SeriesInstanceUID
    assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID


def test_the_character_set_stays_and_gives_way_only_to_what_it_cannot_write(tmp_path: Path) -> None:
    source = make_instance(SpecificCharacterSet="ISO_IR 100", PatientName="Grün^Älva")
    kept = _saved(build_report(make_context([source])), tmp_path / "a.dcm")
    assert kept.SpecificCharacterSet == "ISO_IR 100"
    assert str(kept.PatientName) == "Grün^Älva"
    card = make_card(name="грудь")
    changed = _saved(build_report(make_context([source], card=card)), tmp_path / "b.dcm")
    assert changed.SpecificCharacterSet == "ISO_IR 192"
    assert str(changed.PatientName) == "Grün^Älva"
    assert "грудь" in _texts(changed)


def test_the_report_is_a_measurement_report_with_finding_probability_and_algorithm(tmp_path: Path) -> None:
    source = make_instance()
    context = make_context([source])
    report = _saved(build_report(context), tmp_path / "r.dcm")
    assert report.SOPClassUID == ComprehensiveSRStorage
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.ContentTemplateSequence[0].MappingResource == "DCMR"
    texts = _texts(report)
    for wanted in (
        "Pneumonia",
        "87.3",
        "Present",
        "chest",
        "1.0",
        f"package_sha256={context.package_sha256}",
    ):
        assert wanted in texts
    (group,) = ComprehensiveSR.from_dataset(report).content.get_image_measurement_groups()
    assert group.finding_type.value == "233604007"
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in group.source_images] == [
        source.SOPInstanceUID
    ]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == source.StudyInstanceUID
    series = evidence.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_below_the_threshold_the_finding_is_absent() -> None:
    report = build_report(make_context(probabilities=[(0.2,)]))
    assert "Absent" in _texts(report)
    assert "Present" not in _texts(report)


def test_each_picture_and_finding_has_a_group_of_its_own() -> None:
    sources = [make_instance(), make_instance()]
    card = make_card(findings=(PNEUMONIA, EFFUSION))
    report = build_report(make_context(sources, card=card, probabilities=[(0.9, 0.1), (0.2, 0.8)]))
    groups = ComprehensiveSR.from_dataset(report).content.get_image_measurement_groups()
    assert [str(group.finding_type.meaning) for group in groups] == [
        "Pneumonia", "Pleural effusion", "Pneumonia", "Pleural effusion",
    ]  # fmt: skip
    assert len({group.tracking_uid for group in groups}) == 4


def test_a_new_revision_names_the_report_it_replaces(tmp_path: Path) -> None:
    source = make_instance()
    earlier = Predecessor(source.StudyInstanceUID, "2.25.1", ComprehensiveSRStorage, "2.25.2")
    report = _saved(build_report(make_context([source], predecessors=(earlier,))), tmp_path / "r.dcm")
    item = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert item.SeriesInstanceUID == "2.25.1"
    assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.2"
    assert "PredecessorDocumentsSequence" not in build_report(make_context([source]))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_retry_makes_the_very_same_instance(build: Any, tmp_path: Path) -> None:
    source = make_instance()
    contents = []
    for _ in range(2):
        _saved(build(make_context([source])), tmp_path / "r.dcm")
        contents.append((tmp_path / "r.dcm").read_bytes())
    assert contents[0] == contents[1]


def test_uids_differ_by_revision_package_and_kind_and_are_valid() -> None:
    uids = {
        result_uid(revision, package, kind)
        for revision in ("a", "b") for package in ("c", "d") for kind in ("sr", "sc", "sr.series")
    }  # fmt: skip
    assert len(uids) == 12
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and uid[5:].isdigit() for uid in uids)
    assert result_uid("a", "c", "sr") == "2.25.59349235859249804260412764947987400962"


def test_instances_of_different_patients_make_no_result() -> None:
    sources = [make_instance(), make_instance(PatientID="P-1072")]
    for build in BUILDERS:
        with pytest.raises(ResultError, match=r"identity\.mismatch") as caught:
            build(make_context(sources))
        assert "1072" not in str(caught.value)
        assert "PatientID" in str(caught.value)


@pytest.mark.parametrize("empty", ["", " ", None])
def test_an_instance_of_no_patient_makes_no_result(empty: str | None) -> None:
    for build in BUILDERS:
        with pytest.raises(ResultError, match=r"identity\.missing"):
            build(make_context([make_instance(PatientID=empty)]))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"PatientName": "MEADOW^CLARA^^DR^"}, ()),
        ({"PatientBirthDate": None}, ()),
        ({"IssuerOfPatientID": None}, ()),
        ({"PatientID": ""}, ("PatientID",)),
        ({"PatientName": "Meadow^Clara^J"}, ("PatientName",)),
        ({"PatientBirthDate": "19610306"}, ("PatientBirthDate",)),
        ({"IssuerOfPatientID": "EAST", "PatientSex": "M"}, ("IssuerOfPatientID", "PatientSex")),
    ],
)
def test_what_counts_as_another_patient(changes: dict[str, Any], wrong: tuple[str, ...]) -> None:
    assert differing([make_instance(), make_instance(**changes)]) == wrong


def test_the_capture_refers_to_its_sources_and_burns_no_identity_in(tmp_path: Path) -> None:
    source = make_instance()
    capture = _saved(build_capture(make_context([source])), tmp_path / "c.dcm")
    assert capture.SOPClassUID == SecondaryCaptureImageStorage
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert capture.BurnedInAnnotation == "NO"
    assert "LossyImageCompression" not in capture
    other = make_instance(
        PatientName="Somebody^Else", PatientID="X", SOPInstanceUID=source.SOPInstanceUID, AccessionNumber="Q"
    )
    assert np.array_equal(build_capture(make_context([other])).pixel_array, capture.pixel_array)


def test_lossy_pixels_stay_marked_as_lossy() -> None:
    marked = make_instance(LossyImageCompression="01", LossyImageCompressionRatio="8.1")
    capture = build_capture(make_context([marked]))
    assert capture.LossyImageCompression == "01"
    assert capture.LossyImageCompressionRatio == 8.1
    unmarked = make_instance()
    unmarked.compress("1.2.840.10008.1.2.4.90")
    unmarked.file_meta.TransferSyntaxUID = JPEG2000
    assert build_capture(make_context([unmarked])).LossyImageCompression == "01"


def test_a_source_that_cannot_be_referenced_is_refused() -> None:
    for keyword in ("SOPClassUID", "SeriesInstanceUID", "Modality"):
        source = make_instance()
        del source[keyword]
        with pytest.raises(ResultError, match=r"result\.source"):
            build_report(make_context([source]))


def test_a_context_without_answers_or_of_two_studies_is_refused() -> None:
    with pytest.raises(ResultError, match=r"result\.empty"):
        make_context([])
    with pytest.raises(ResultError, match=r"result\.answer"):
        make_context(probabilities=[(0.1, 0.2)])
    with pytest.raises(ResultError, match=r"result\.study"):
        make_context([make_instance(), make_instance(StudyInstanceUID="1.2.3")])


@pytest.mark.parametrize("size", [(28, 28), (16, 64), (3000, 2500), (400, 100)])
def test_the_picture_is_large_enough_to_read_whatever_the_size_of_the_source(size: tuple[int, int]) -> None:
    context = make_context([make_instance(radiograph(*size))])
    picture = render(context)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] >= 840
    assert max(as_seen(context.leading.source).shape) == PICTURE_EDGE
    assert max(picture.shape) <= PICTURE_EDGE + 400


def test_the_picture_shows_the_radiograph_and_changes_with_the_probability() -> None:
    source = make_instance(radiograph(512, 512))
    low, high = (render(make_context([source], probabilities=[(value,)])) for value in (0.1, 0.9))
    shown = low[64 : 64 + PICTURE_EDGE, :, 0].astype(float)
    seen = as_seen(source).astype(float)
    assert np.array_equal(shown, seen)
    assert np.array_equal(low[: 64 + PICTURE_EDGE], high[: 64 + PICTURE_EDGE])
    amber = (high[..., 0] > 220) & (high[..., 1] > 150) & (high[..., 2] < 110)
    blue = (low[..., 0] < 130) & (low[..., 2] > 200)
    assert amber[64 + PICTURE_EDGE :].sum() > 3000
    assert blue.sum() > 500


@pytest.mark.parametrize(
    ("share", "threshold", "text"),
    [
        (0.873, 0.5, "87 %"), (1.0, 0.5, "100 %"), (0.9999, 0.5, "> 99 %"), (0.0, 0.5, "0 %"),
        (0.001, 0.5, "< 1 %"),
        (0.4996, 0.5, "49.9 %"), (0.5, 0.5, "50 %"), (0.296, 0.3, "29.6 %"),
    ],
)  # fmt: skip
def test_a_probability_below_the_threshold_never_reads_like_the_threshold(
    share: float, threshold: float, text: str
) -> None:
    assert picture._percent(share, threshold) == text


def test_long_names_and_many_findings_stay_inside_the_picture() -> None:
    findings = tuple(
        type(PNEUMONIA)(f"{index}", "99TEST", "Very long finding name " * 2 + str(index), f"f{index}")
        for index in range(9)
    )
    card = make_card(findings=findings, name="m" * 64, version="v" * 64)
    context = make_context(card=card, probabilities=[tuple(index / 9 for index in range(9))])
    picture = render(context)
    assert (picture[100:, -8:] < 80).all()
    assert build_report(context).SOPClassUID == ComprehensiveSRStorage


def test_the_leading_picture_is_the_one_with_the_highest_probability() -> None:
    sources = [make_instance(), make_instance(), make_instance()]
    context = make_context(sources, probabilities=[(0.2,), (0.7,), (0.7,)])
    assert context.leading == Answer(sources[1], (0.7,))
    assert isinstance(context, ResultContext)
    assert prepare(sources[1], context.card.input.preprocessing).shape[0] == 1
