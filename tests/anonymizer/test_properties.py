"""Properties of de-identification over generated instances."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, XRayAngiographicImageStorage

from anonymizer import keep_list, part10, pixels
from anonymizer.elements import Element
from anonymizer.engine import Quarantined, deidentify
from anonymizer.errors import StopError
from anonymizer.options import Option
from anonymizer.profiles import bundled, load_profile
from anonymizer.rules import Action
from anonymizer.verify.identifiers import may_identify
from tests.anonymizer.material import CONTEXT, DEFAULT, OTHER, PLAIN, SOP_UID, ct, encode
from tests.anonymizer.residue import find_residue

MARK = "ZQPROPERTY"
TEXT_VRS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
CT = "1.2.840.10008.5.1.4.1.1.2"
TAGS = sorted(
    tag
    for tag in keyword_dict.values()
    if tag >> 16 not in {0, 2, 4, 0x7FE0, 0xFFFE} and dictionary_VR(tag) in TEXT_VRS
    and tag not in {0x00080005, 0x00100020}
)  # fmt: skip
GROUPS_OF_SUBJECTS = {0x00100026, 0x00100027}  # such instances are never released
SEQUENCES = sorted(
    tag
    for tag in keyword_dict.values()
    if dictionary_VR(tag) == "SQ" and tag >> 16 > 4 and tag not in GROUPS_OF_SUBJECTS
)
MARKERS: dict[str, list[Any]] = {
    "PatientIdentityRemoved": ["YES", "NO"],
    "DeidentificationMethod": ["done"],
    "BurnedInAnnotation": ["NO"],
    "RecognizableVisualFeatures": ["NO"],
    "LongitudinalTemporalInformationModified": ["UNMODIFIED", "REMOVED", "MODIFIED"],
    "QualityControlImage": ["YES"],
    "QualityControlSubject": ["YES"],
    "ClinicalTrialProtocolID": ["X"],
}

slowly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def places(draw: st.DrawFn) -> list[tuple[tuple[int, ...], int]]:
    """Return places for marks: a path of sequences and a text attribute."""
    path = st.lists(st.sampled_from(SEQUENCES), max_size=3).map(tuple)
    return draw(st.lists(st.tuples(path, st.sampled_from(TAGS)), min_size=1, max_size=6))


def _plant(ds: Dataset, path: tuple[int, ...], tag: int) -> None:
    for sequence in path:
        if sequence not in ds:
            ds.add(DataElement(sequence, "SQ", Sequence([Dataset()])))
        ds = ds[sequence].value[0]
    ds.add(DataElement(tag, dictionary_VR(tag), MARK))


def _kept(path: tuple[int, ...], tag: int) -> bool:
    decisions = keep_list.decisions(CT, PLAIN)
    assert decisions is not None
    for sequence in path:
        found = decisions.get(sequence)
        if found is None or found.action not in {Action.KEEP, Action.CONTAINED}:
            return False
        decisions = found.children
    decision = decisions.get(tag)
    return decision is not None and decision.action is Action.KEEP


@slowly
@given(places())
def test_no_mark_survives_outside_attributes_ruled_keep(found: list[tuple[tuple[int, ...], int]]) -> None:
    ds = ct()
    for path, tag in found:
        _plant(ds, path, tag)
    outcome = deidentify(encode(ds), CONTEXT)
    assert not isinstance(outcome, Quarantined) or outcome.reason_code == "residual_identifier"
    if isinstance(outcome, Quarantined):  # one mark is an identifier, and one stands in a kept attribute
        assert any(may_identify(tag, dictionary_VR(tag)) for _, tag in found)
        assert any(_kept(path, tag) for path, tag in found)
        return
    after = dcmread(io.BytesIO(b"".join(outcome[1])))
    if not any(_kept(path, tag) for path, tag in found):
        assert find_residue(after, [MARK]) == []


@slowly
@given(st.dictionaries(st.sampled_from(sorted(MARKERS)), st.integers(0, 5), min_size=1))
def test_no_marker_in_the_input_skips_a_step(chosen: dict[str, int]) -> None:
    ds = ct()
    for keyword, number in chosen.items():
        setattr(ds, keyword, MARKERS[keyword][number % len(MARKERS[keyword])])
    ds.PatientComments, ds.InstitutionName, ds.OperatorsName = MARK, MARK, MARK
    outcome = deidentify(encode(ds), CONTEXT)
    assert not isinstance(outcome, Quarantined)
    content = b"".join(outcome[1])
    assert MARK.encode() not in content
    after = dcmread(io.BytesIO(content))
    assert after.PatientID == outcome[0].pseudonym
    assert (after.PatientIdentityRemoved, after.LongitudinalTemporalInformationModified) == (
        "YES",
        "MODIFIED",
    )


DESCRIPTIONS = ("CT Thorax", "of Smithfield", "AX T1 1mm 2024", "Lunge\\B60f", "Müstermann left", "")


@pytest.mark.parametrize("name", bundled())
@slowly
@given(places(), st.sampled_from(["4711", "Pat 17", "H-1/2"]), st.sampled_from(DESCRIPTIONS))
def test_a_second_pass_removes_nothing_more(
    name: str, found: list[tuple[tuple[int, ...], int]], patient_id: str, description: str
) -> None:
    ds = ct(patient_id=patient_id)
    for path, tag in found:
        _plant(ds, path, tag)
    ds.StudyDescription, ds.PatientAge = description, "095Y"
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    profile = load_profile(name)
    once = deidentify(encode(ds), replace(CONTEXT, profile=profile))
    assume(not isinstance(once, Quarantined))
    assert not isinstance(once, Quarantined)
    twice = deidentify(b"".join(once[1]), replace(OTHER, profile=profile))
    assert not isinstance(twice, Quarantined)
    a, b = (dcmread(io.BytesIO(b"".join(chunks))) for chunks in (once[1], twice[1]))
    before, after = list(a.iterall()), list(b.iterall())
    assert [e.tag for e in before] == [e.tag for e in after]
    changed = [x for x, y in zip(before, after, strict=True) if x.VR != "SQ" and x.value != y.value]
    machines = {"AE"} if Option.DEVICE_IDENTITY in profile.options else set()
    assert all(
        e.VR in {"UI", "DA", "DT"} | machines or e.keyword in {"PatientID", "PatientName"} for e in changed
    )


@slowly
@given(places())
def test_equal_input_and_key_give_equal_bytes(found: list[tuple[tuple[int, ...], int]]) -> None:
    ds = ct()
    for path, tag in found:
        _plant(ds, path, tag)
    content = encode(ds)
    first, second = deidentify(content, DEFAULT), deidentify(content, DEFAULT)
    if isinstance(first, Quarantined) or isinstance(second, Quarantined):
        assert first == second
        return
    assert b"".join(first[1]) == b"".join(second[1])


WHOLE = encode(ct())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_truncated_file_never_passes_as_whole(length: int) -> None:
    assert isinstance(deidentify(WHOLE[:length], CONTEXT), Quarantined)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_crash_nothing_and_leak_nothing(changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for at, value in changes:
        content[at] = value
    outcome = deidentify(bytes(content), CONTEXT)
    if isinstance(outcome, Quarantined):
        assert outcome.reason_code
        return
    written = b"".join(outcome[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert dcmread(io.BytesIO(written)).PatientID == outcome[0].pseudonym
    for identifier in ("Müstermann", "Jörg", "ACC-998877", "19560708", "Überweiser"):
        assert identifier.encode("latin-1") not in written


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 131, b"\0" * 128 + b"DICM", b"%PDF-1.4", b"\xff" * 500, b"DICM" * 99]
)
def test_bytes_that_are_no_dicom_are_named_so(content: bytes) -> None:
    outcome = deidentify(content, CONTEXT)
    assert isinstance(outcome, Quarantined)
    assert outcome.reason_code in {"not_dicom", "transfer_syntax_not_judged"}


INTERPRETED = (  # numbers, dates and times that the engine computes with
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "StudyDate", "SeriesTime",
    "AcquisitionDateTime", "PatientBirthDate", "PixelSpacing", "InstanceNumber",
)  # fmt: skip
FRAMES = encapsulate([struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\xc1x" * 2] * 2)


def _two_frames(transfer_syntax: UID) -> part10.File:
    ds = ct()
    ds.SOPClassUID, ds.Modality, ds.NumberOfFrames = XRayAngiographicImageStorage, "XA", "2"
    ds.AcquisitionDateTime = "20240229101112"
    ds.PixelData = ds.PixelData * 2 if transfer_syntax != RLELossless else FRAMES
    ds["PixelData"].VR = "OW" if transfer_syntax != RLELossless else "OB"
    ds["PixelData"].is_undefined_length = transfer_syntax == RLELossless
    return part10.read(encode(ds, transfer_syntax))


NATIVE_AND_COMPRESSED = [_two_frames(ExplicitVRLittleEndian), _two_frames(RLELossless)]
NUMBERS = st.one_of(
    st.binary(max_size=24),
    st.text("0123456789+-.eE \\\0", max_size=40).map(lambda text: text.encode("ascii")),
    st.integers(1, 6000).map(lambda size: b"1" * size),
    st.sampled_from([b"\xb2\xb2", b"1e9", b"-1", b"99999999", b"00010101", b"999999999999", b"\xff" * 2]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(NATIVE_AND_COMPRESSED),
    st.dictionaries(st.sampled_from(INTERPRETED), NUMBERS, min_size=1, max_size=3),
)
def test_whatever_stands_in_a_number_is_released_or_stopped_with_a_code(
    file: part10.File, changes: dict[str, bytes]
) -> None:
    item = dict(file.item)
    for keyword, value in changes.items():
        tag = keyword_dict[keyword]
        item[tag] = Element(tag, dictionary_VR(tag), value + b" " * (len(value) % 2))
    outcome = deidentify(
        b"".join(part10.write(item, file.sop_class_uid, SOP_UID, file.transfer_syntax_uid)), CONTEXT
    )
    assert not isinstance(outcome, Quarantined) or outcome.reason_code


def test_a_number_of_frames_that_no_integer_string_can_hold_waits() -> None:
    file = NATIVE_AND_COMPRESSED[0]
    frames = Element(keyword_dict["NumberOfFrames"], "IS", b"1" * 5000)
    content = part10.write(
        file.item | {frames.tag: frames}, file.sop_class_uid, SOP_UID, file.transfer_syntax_uid
    )
    outcome = deidentify(b"".join(content), CONTEXT)
    assert isinstance(outcome, Quarantined)
    assert outcome.reason_code == "unfit_value"


@pytest.mark.parametrize("frames", [b"1" * 5000, b"0", b"-1", b"\xb2\xb2", b"1\\1"])
def test_an_impossible_number_of_frames_is_refused_by_name(frames: bytes) -> None:
    file = NATIVE_AND_COMPRESSED[0]
    tag = keyword_dict["NumberOfFrames"]
    with pytest.raises(StopError) as caught:
        pixels.describe(file.item | {tag: Element(tag, "IS", frames)}, file.syntax)
    assert caught.value.code == "pixel_data_mismatch"
