"""Profiles: the options of PS3.15 Annex E as data, files of one's own, and what each writes of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.sequence import Sequence

from anonymizer import keep_list, rules
from anonymizer.engine import Context
from anonymizer.errors import ProfileError
from anonymizer.keys import ProjectKeys
from anonymizer.options import CODES, COLUMNS, Option, codes_of
from anonymizer.profiles import DEFAULT, bundled, load_profile
from anonymizer.rules import Action
from tests.anonymizer.material import ct, item, release
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

CT = "1.2.840.10008.5.1.4.1.1.2"

CONTENT_CREATOR = "00700084"  # type 2 in the edition of 2020, type 3 since

# PS3.15 Table E.1-1, 2025b, retyped: tag and the option columns that are not empty.
RETYPED = {
    "00080054": {Option.DEVICE_IDENTITY: "C"},
    "00080080": {Option.INSTITUTION_IDENTITY: "K"},
    "00081010": {Option.DEVICE_IDENTITY: "K"},
    "00081030": {Option.CLEAN_DESCRIPTORS: "C"},
    "00081140": {Option.UIDS: "K"},
    "00100010": {},
    "00100030": {},
    "00100040": {Option.PATIENT_CHARACTERISTICS: "K"},
    "00102110": {Option.PATIENT_CHARACTERISTICS: "C", Option.CLEAN_DESCRIPTORS: "C"},
    "00180010": {Option.CLEAN_DESCRIPTORS: "C"},
    "00181002": {Option.UIDS: "K", Option.DEVICE_IDENTITY: "K"},
    "00181200": {Option.DEVICE_IDENTITY: "K", Option.FULL_DATES: "K", Option.MODIFIED_DATES: "C"},
    "0020000D": {Option.UIDS: "K"},
    "00080020": {Option.FULL_DATES: "K", Option.MODIFIED_DATES: "C"},
    "0040A730": {Option.CLEAN_STRUCTURED: "C"},
    "00700001": {Option.CLEAN_GRAPHICS: "C"},
    "30060026": {Option.CLEAN_DESCRIPTORS: "C"},
    "50XXXXXX": {Option.CLEAN_GRAPHICS: "C"},
}

# PS3.16 CID 7050, retyped.
CID_7050 = {
    "113101": "Clean Pixel Data Option",
    "113102": "Clean Recognizable Visual Features Option",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
    "113105": "Clean Descriptors Option",
    "113106": "Retain Longitudinal Temporal Information Full Dates Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113110": "Retain UIDs Option",
    "113111": "Retain Safe Private Option",
    "113112": "Retain Institution Identity Option",
}


def context(profile: str | Path) -> Context:
    """Return a context with a profile."""
    return Context(ProjectKeys.derive(b"\x07" * 32, "trial"), "trial", profile=load_profile(profile))


def released(ds: Dataset, profile: str | Path) -> Dataset:
    """De-identify by a profile what must be released."""
    return release(ds, context(profile)).ds


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("tag", "options"), RETYPED.items(), ids=str)
def test_a_row_has_the_options_that_the_standard_prints(tag: str, options: dict[Option, str]) -> None:
    assert dict(rules.table()[tag].options) == options


def test_options_have_the_codes_of_the_standard() -> None:
    assert dict(CODES.values()) == CID_7050
    assert codes_of([])[0] == ("113100", "Basic Application Confidentiality Profile")
    assert [code for code, _ in codes_of(Option)] == sorted(["113100", *CID_7050])


@pytest.mark.real_data
def test_the_tables_are_the_reference_row_by_row() -> None:
    reference = shared_data_dir().parent / "reference"
    annex = json.loads((reference / "annex_e.json").read_text())["rows"]
    assert len(annex) == len(rules.table())
    for row in annex:
        rule = rules.table()[row["tag"]]
        wanted = {COLUMNS[name]: code for name, code in row["options"].items()}
        assert (rule.basic, dict(rule.options)) == (row["basic"], wanted), row["tag"]
    safe = json.loads((reference / "safe_private.json").read_text())["rows"]
    ours = rules.read_table("safe_private.json")["rows"]
    keys = ("group", "private_creator", "element_low", "vr", "vm")
    assert [[row[key].strip() for key in keys] for row in safe] == ours
    reports = json.loads((reference / "sr_clean_2020b.json").read_text())["rows"]
    codes = rules.read_table("sr_codes.json")["rows"]
    assert [[*row[1:4], *row[6:], row[0]] for row in reports] == codes


@pytest.mark.real_data
def test_types_are_the_reference_s_for_every_sop_class() -> None:
    reference = json.loads((shared_data_dir().parent / "reference" / "annex_e_iod_types.json").read_text())
    basic = load_profile("basic")
    compared = 0
    for uid, entry in reference["sop"].items():
        decisions = keep_list.decisions(uid, basic)
        if decisions is None:
            continue
        for tag, (kind, usage, _) in entry["types"].items():
            found = decisions.get(int(tag, 16)) if len(tag) == 8 else None
            if found is None or usage != "M":
                continue
            compared += 1
            stricter = found.type <= kind  # another module may ask for more
            assert stricter or tag == CONTENT_CREATOR, (uid, tag, kind, found.type)
    assert compared > 2000


def action(tag: int, profile: str) -> Action:
    decisions = keep_list.decisions(CT, load_profile(profile))
    assert decisions is not None
    return decisions[tag].action


@pytest.mark.parametrize(
    ("profile", "tag", "expected"),
    [
        ("basic", 0x00080020, Action.EMPTY),
        ("basic", 0x00081030, Action.REMOVE),
        ("modified-dates", 0x00080020, Action.SHIFT),
        ("modified-dates", 0x00101010, Action.REMOVE),
        ("research-default", 0x00081030, Action.CLEAN),
        ("research-default", 0x00101010, Action.KEEP),
        ("research-default", 0x00080080, Action.REMOVE),
        ("research-default", 0x00181000, Action.REMOVE),
        ("research-default", 0x00100030, Action.EMPTY),
        ("longitudinal", 0x00080020, Action.SHIFT),
        ("keep-device", 0x00181000, Action.KEEP),
        ("keep-device", 0x00181200, Action.SHIFT),
    ],
)
def test_options_decide_in_the_bundled_profiles(profile: str, tag: int, expected: Action) -> None:
    assert action(tag, profile) is expected


def _research() -> Dataset:
    ds = ct()
    ds.StudyDescription = "CT Thorax Müstermann 12.05.1970"
    ds.SeriesDescription = "Lung 1.0 B60f"
    ds.PatientAge, ds.PatientWeight = "093Y", "71.5"
    ds.DeviceSerialNumber, ds.InstitutionName = "SN-77553311", "Klinikum Beispielstadt"
    ds.StationAETitle = "CT01KLINIK"
    return ds


def test_the_default_keeps_what_training_needs_and_nothing_of_the_person() -> None:
    out = released(_research(), DEFAULT)
    assert (out.StudyDescription, out.SeriesDescription) == ("CT Thorax", "Lung 1.0 B60f")
    assert (out.PatientAge, out.PatientWeight, out.PatientSex) == ("090Y", 71.5, "M")
    assert out.PatientBirthDate == ""
    assert "DeviceSerialNumber" not in out
    assert "InstitutionName" not in out
    assert out.LongitudinalTemporalInformationModified == "MODIFIED"


def test_full_dates_stay_and_say_so() -> None:
    out = released(_research(), "longitudinal")
    assert (out.StudyDate, out.StudyTime) == ("20240229", "101112.5")
    assert out.LongitudinalTemporalInformationModified == "UNMODIFIED"


def test_basic_leaves_no_date_and_says_so() -> None:
    out = released(_research(), "basic")
    assert out.StudyDate == out.StudyTime == ""
    assert out.LongitudinalTemporalInformationModified == "REMOVED"
    assert "StudyDescription" not in out


def test_device_identity_stays_and_a_machine_gets_another_name() -> None:
    out = released(_research(), "keep-device")
    assert out.DeviceSerialNumber == "SN-77553311"
    assert out.get("StationAETitle", "") != "CT01KLINIK"


@pytest.mark.parametrize("name", bundled())
def test_an_instance_says_by_which_profile(name: str) -> None:
    profile, out = load_profile(name), released(ct(), name)
    assert list(out.DeidentificationMethod) == [
        "Cloister: PS3.15 2026c",
        profile.hash,
        f"profile {name}",
    ]
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in out.DeidentificationMethodCodeSequence]
    # Of a slice nobody looked at the pixels, and none of the head is here.
    done = profile.options - {Option.CLEAN_PIXELS, Option.CLEAN_FACES}
    assert codes == [(value, "DCM") for value, _ in codes_of(done)]


def test_profiles_differ_in_their_hash_and_descriptions_do_not(tmp_path: Path) -> None:
    assert len({load_profile(name).hash for name in bundled()}) == len(bundled())
    one = load_profile(written(tmp_path, 'name = "own"\ndescription = "a"\noptions = ["clean-graphics"]\n'))
    (tmp_path / "b").mkdir()
    two = load_profile(written(tmp_path / "b", 'name = "own"\noptions = ["clean-graphics"]\n'))
    assert one.hash == two.hash


def test_rules_of_one_s_own_go_before_the_table(tmp_path: Path) -> None:
    profile = written(
        tmp_path,
        """
        name = "own"
        extends = "research-default"
        [[rules]]
        attribute = "InstitutionName"
        action = "replace"
        value = "SITE A"
        [[rules]]
        attribute = "(0018,1000)"
        action = "keep"
        [[rules]]
        attribute = "SeriesDescription"
        action = "remove"
        [[rules]]
        attribute = "KVP"
        action = "empty"
        [[rules]]
        attribute = "0099xx01"
        private_creator = "OURS 1"
        action = "keep"
        """,
    )
    ds = _research()
    block = ds.private_block(0x0099, "OURS 1", create=True)
    block.add_new(0x01, "DS", "1.25")
    block.add_new(0x02, "DS", "2.5")
    out = released(ds, profile)
    assert (out.InstitutionName, out.DeviceSerialNumber, out.KVP) == ("SITE A", "SN-77553311", None)
    assert "SeriesDescription" not in out
    assert out.StudyDescription == "CT Thorax"
    assert out.private_block(0x0099, "OURS 1")[0x01].value == 1.25
    assert 0x02 not in out.private_block(0x0099, "OURS 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not TOML"),
        ("options = []", "name: expected"),
        ('name = "a"\ncolour = "red"', "unknown key colour"),
        ('name = "a"\noptions = ["keep-all"]', "'keep-all' is none"),
        (
            'name = "a"\noptions = ["retain-longitudinal-full-dates", "retain-longitudinal-modified-dates"]',
            "exclude each other",
        ),
        ('name = "a"\nrelease = ["anything"]', "'anything' is none"),
        ('name = "a"\nrelease = ["structured_report"]', "needs the option clean-structured-content"),
        ('name = "a"\nextends = "a.b"', "does not exist"),
        ('name = "a"\n[[rules]]\nattribute = "NoSuch"\naction = "keep"', "rule 1: attribute: expected"),
        ('name = "a"\n[[rules]]\nattribute = "PatientID"\naction = "keep"', "no rule can change it"),
        ('name = "a"\n[[rules]]\nattribute = "OperatorsName"\naction = "keep"', "not possible for VR PN"),
        ('name = "a"\n[[rules]]\nattribute = "KVP"\naction = "burn"', "action: expected one of"),
        ('name = "a"\n[[rules]]\nattribute = "KVP"\naction = "replace"', "value: expected with"),
        ('name = "a"\n[[rules]]\nattribute = "KVP"\naction = "replace"\nvalue = "high"', "VR DS allows"),
        (
            'name = "a"\n[[rules]]\nattribute = "0010xx01"\nprivate_creator = "X"\naction = "keep"',
            "odd group",
        ),
        (
            """name = "a"
            [[rules]]
            attribute = "KVP"
            action = "keep"
            [[rules]]
            attribute = "00180060"
            action = "remove"
            """,
            "two rules for one attribute",
        ),
    ],
)
def test_a_wrong_profile_is_refused_with_what_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=r"profile .*own\.toml|profile 'a\.b'") as caught:
        load_profile(written(tmp_path, text))
    assert message in str(caught.value)


def test_a_code_of_a_local_scheme_has_a_meaning_that_somebody_typed() -> None:
    def meaning(scheme: str, text: str) -> Any:
        ds = ct()
        ds.AnatomicRegionSequence = Sequence(
            [item(CodeValue="1", CodingSchemeDesignator=scheme, CodeMeaning=text)]
        )
        return released(ds, DEFAULT).AnatomicRegionSequence[0].CodeMeaning

    assert meaning("SCT", "Structure of Smithfield") == "Structure of Smithfield"
    assert meaning("99OURS", "Smithfield left lung") == "left lung"
    assert meaning("L", "Smithfield") == "REMOVED"
