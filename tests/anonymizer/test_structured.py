"""Content items of reports, graphic annotations and labels, and private attributes that may stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydicom.sequence import Sequence
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage, RTStructureSetStorage

from anonymizer.options import Option
from anonymizer.profiles import DEFAULT, load_profile
from anonymizer.rules import Action
from anonymizer.structured import action_for
from tests.anonymizer.material import STUDY_UID, ct, item, release, stop
from tests.anonymizer.test_profiles import context, released

if TYPE_CHECKING:
    from pydicom import Dataset

BASIC_TEXT = "1.2.840.10008.5.1.4.1.1.88.11"
OPTIONS = load_profile(DEFAULT).options


def code(value: str, scheme: str, meaning: str) -> Sequence:
    return Sequence([item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


def content(value_type: str, concept: tuple[str, str, str], **values: object) -> Dataset:
    return item(
        RelationshipType="CONTAINS", ValueType=value_type, ConceptNameCodeSequence=code(*concept), **values
    )


FINDING = ("121071", "DCM", "Finding")


def report(*items: Dataset) -> Dataset:
    """Return a Basic Text SR."""
    ds = ct()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "ImageType"):
        delattr(ds, keyword)
    ds.SOPClassUID, ds.Modality = BASIC_TEXT, "SR"
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = code("18748-4", "LN", "Diagnostic Imaging Report")
    ds.ContentSequence = Sequence(items)
    return ds


def texts(out: Dataset) -> list[Any]:
    return [entry.get("TextValue") for entry in out.ContentSequence]


@pytest.mark.parametrize(
    ("concept", "value_type", "options", "expected"),
    [
        (("121022", "DCM"), "TEXT", OPTIONS, Action.REMOVE),  # Accession Number
        (("121071", "DCM"), "TEXT", OPTIONS, Action.CLEAN),  # Finding
        (("121071", "DCM"), "TEXT", frozenset(), Action.DUMMY),
        (("121029", "DCM"), "PNAME", OPTIONS, Action.DUMMY),  # Subject Name
        (("121030", "DCM"), "TEXT", OPTIONS, Action.DUMMY),  # Subject ID
        (("121031", "DCM"), "DATE", OPTIONS, Action.REMOVE),  # Subject Birth Date
        (("121033", "DCM"), "NUM", OPTIONS, Action.KEEP),  # Subject Age
        (("121033", "DCM"), "NUM", frozenset(), Action.REMOVE),
        (("111060", "DCM"), "DATE", OPTIONS, Action.KEEP),  # Study Date: shifted with its attribute
        (("121016", "DCM"), "TEXT", OPTIONS, Action.REMOVE),  # Device Observer Serial Number
        (("121016", "DCM"), "TEXT", OPTIONS | {Option.DEVICE_IDENTITY}, Action.KEEP),
        (("1", "99OURS"), "TEXT", OPTIONS, Action.CLEAN),
        (("1", "99OURS"), "NUM", OPTIONS, Action.KEEP),
    ],
)
def test_a_concept_decides(
    concept: tuple[str, str], value_type: str, options: frozenset[Option], expected: Action
) -> None:
    assert action_for(*concept, value_type, options) is expected


def test_a_report_keeps_its_findings_and_loses_who_and_where() -> None:
    ds = report(
        content("TEXT", FINDING, TextValue="Lung normal."),
        content("TEXT", FINDING, TextValue="Seen by Dr Smithfield at the Beispielklinik"),
        content("TEXT", ("121022", "DCM", "Accession Number"), TextValue="ACC-998877"),
        content("PNAME", ("121008", "DCM", "Person Observer Name"), PersonName="Smithfield^Ann"),
        content("DATE", ("111060", "DCM", "Study Date"), Date="20240229"),
        content("DATE", ("121031", "DCM", "Subject Birth Date"), Date="19560708"),
        content("UIDREF", ("110180", "DCM", "Study Instance UID"), UID=STUDY_UID),
    )
    out = released(ds, DEFAULT)
    kinds = [entry.ValueType for entry in out.ContentSequence]
    assert kinds == ["TEXT", "TEXT", "PNAME", "DATE", "UIDREF"]
    assert texts(out)[:2] == ["Lung normal.", "REMOVED"]
    assert out.ContentSequence[2].PersonName == "REMOVED"
    assert out.ContentSequence[3].Date == out.StudyDate
    assert out.StudyDate != "20240229"
    assert out.StudyInstanceUID == out.ContentSequence[4].UID


def test_a_text_in_an_item_of_another_kind_goes() -> None:
    ds = report(content("CODE", FINDING, ConceptCodeSequence=code("1", "SCT", "x"), TextValue="Smithfield"))
    (entry,) = released(ds, DEFAULT).ContentSequence
    assert "TextValue" not in entry
    assert entry.ConceptCodeSequence[0].CodeValue == "1"


def test_where_items_are_referred_to_by_position_none_is_taken_away() -> None:
    by_position = item(RelationshipType="INFERRED FROM", ReferencedContentItemIdentifier=[1, 2])
    ds = report(
        content("TEXT", ("121022", "DCM", "Accession Number"), TextValue="ACC-998877"),
        content("TEXT", FINDING, TextValue="Lung normal.", ContentSequence=Sequence([by_position])),
    )
    out = released(ds, DEFAULT)
    assert texts(out) == ["REMOVED", "Lung normal."]
    assert list(out.ContentSequence[1].ContentSequence[0].ReferencedContentItemIdentifier) == [1, 2]


def test_without_the_option_a_report_waits_for_a_person() -> None:
    assert stop(report(content("TEXT", FINDING, TextValue="Lung normal."))).reason_code == "structured_report"


def test_a_presentation_state_keeps_its_graphics_and_cleans_their_text() -> None:
    ds = ct()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "ImageType"):
        delattr(ds, keyword)
    ds.SOPClassUID, ds.Modality = GrayscaleSoftcopyPresentationStateStorage, "PR"
    ds.ContentLabel, ds.ContentDescription = "ANNOTATION", "for Smithfield"
    ds.ContentCreatorName = "Smithfield^Ann"
    text = item(
        BoundingBoxAnnotationUnits="PIXEL",
        BoundingBoxTopLeftHandCorner=[1, 1],
        BoundingBoxBottomRightHandCorner=[5, 5],
        BoundingBoxTextHorizontalJustification="LEFT",
        UnformattedTextValue="Müstermann 1956",
    )
    graphic = item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=2,
        GraphicData=[1.0, 1.0, 4.0, 4.0],
        GraphicType="POLYLINE",
        GraphicFilled="N",
    )
    ds.GraphicAnnotationSequence = Sequence(
        [item(GraphicLayer="MARKS", TextObjectSequence=[text], GraphicObjectSequence=[graphic])]
    )
    (annotation,) = released(ds, DEFAULT).GraphicAnnotationSequence
    assert list(annotation.GraphicObjectSequence[0].GraphicData) == [1.0, 1.0, 4.0, 4.0]
    assert annotation.TextObjectSequence[0].UnformattedTextValue == "REMOVED"


def test_structures_keep_names_that_are_anatomy() -> None:
    ds = ct()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "ImageType"):
        delattr(ds, keyword)
    ds.SOPClassUID, ds.Modality, ds.StructureSetLabel = RTStructureSetStorage, "RTSTRUCT", "RT1 Müstermann"
    rois = [("1", "Lung_L"), ("2", "GTV Müstermann"), ("3", "Beispiel")]
    ds.StructureSetROISequence = Sequence(
        [
            item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID="1.3.6.1.4.1.99999.1",
                ROIName=name,
                ROIGenerationAlgorithm="",
            )
            for number, name in rois
        ]
    )
    out = released(ds, DEFAULT)
    assert [roi.ROIName for roi in out.StructureSetROISequence] == ["Lung_L", "GTV", ""]
    assert out.StructureSetLabel == "RT1"


def test_safe_private_attributes_stay_in_new_blocks_and_others_go() -> None:
    ds = ct()
    siemens = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    siemens.add_new(0x08, "CS", "IMAGE NUM 4")  # not in the table
    siemens.add_new(0x0C, "IS", "1000")  # b-value
    ds.private_block(0x0019, "SMITHFIELD", create=True).add_new(0x0C, "IS", "5")
    ds.private_block(0x0019, "GEMS_ACQU_01", create=True).add_new(0x23, "DS", "1.5")
    out = released(ds, DEFAULT)
    assert out.private_block(0x0019, "SIEMENS MR HEADER")[0x0C].value == 1000
    assert out.private_block(0x0019, "GEMS_ACQU_01")[0x23].value == 1.5
    assert [e.value for e in out if e.tag.group == 0x0019 and e.tag.elem < 0x100] == [
        "GEMS_ACQU_01",
        "SIEMENS MR HEADER",
    ]
    assert 0x08 not in out.private_block(0x0019, "SIEMENS MR HEADER")
    assert not any(e.tag.is_private for e in release(ds, context("modified-dates")).ds)


def test_a_safe_private_attribute_with_an_identifier_in_it_is_no_exception() -> None:
    ds = ct()
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0D, "CS", "MRN-4711-X")
    outcome = release(ds, context(DEFAULT)).ds
    assert "MRN-4711-X" not in str(outcome)


@pytest.mark.parametrize("value_type", ["CODE", "NUM", "CONTAINER", "UIDREF", "TCOORD", ""])
def test_a_text_in_an_item_that_is_no_text_goes(value_type: str) -> None:
    inner = content("CODE", FINDING, TextValue="Mrs Zqxyv called from Quarxville")
    hidden = content(value_type, FINDING, TextValue="Mr Zqxyv lives here", ContentSequence=Sequence([inner]))
    out = released(report(hidden, content("TEXT", FINDING, TextValue="lung")), DEFAULT)
    assert texts(out) == [None, "lung"]
    assert "TextValue" not in out.ContentSequence[0].ContentSequence[0]
