"""What a person's decision changes in the outcome of one instance, and what it never changes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from anonymizer import verdicts
from anonymizer.boxes import Box
from anonymizer.engine import Quarantined, Released, deidentify, deidentify_file
from anonymizer.errors import VerdictError
from anonymizer.verdicts import Verdict
from tests.anonymizer.material import DEFAULT, UNSEEN, ct, encode
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = frozenset({"(0008,0070)", "(0008,1090)"})


def of_a_maker() -> Dataset:
    """Return an instance whose patient is called almost as its maker."""
    ds = ct()
    ds.PatientName, ds.Manufacturer = "Vendori^Anna", "Vendorius"
    ds.ManufacturerModelName = "Vendorius One"
    return ds


def outcome_of(ds: Dataset, verdict: Verdict) -> tuple[Released, Dataset] | Quarantined:
    found = deidentify(encode(ds), replace(UNSEEN, verdict=verdict))
    return found if isinstance(found, Quarantined) else (found[0], dcmread(io.BytesIO(b"".join(found[1]))))


def test_what_was_found_left_over_is_removed_by_place() -> None:
    stopped = outcome_of(of_a_maker(), verdicts.NONE)
    assert isinstance(stopped, Quarantined)
    assert stopped.reason_code == verdicts.RESIDUE
    assert set(verdicts.PLACE.findall(stopped.reason)) == MACHINE
    made = outcome_of(of_a_maker(), Verdict(removed=MACHINE))
    assert not isinstance(made, Quarantined), made
    assert "Vendorius" not in str(made[1])
    assert made[1].Manufacturer == ""
    assert "ManufacturerModelName" not in made[1]


def test_what_a_person_lets_stand_stays_and_the_rest_is_still_found() -> None:
    made = outcome_of(of_a_maker(), Verdict(standing=MACHINE))
    assert not isinstance(made, Quarantined), made
    assert made[1].Manufacturer == "Vendorius"
    part = outcome_of(of_a_maker(), Verdict(standing=frozenset({"(0008,0070)"})))
    assert isinstance(part, Quarantined)
    assert verdicts.PLACE.findall(part.reason) == ["(0008,1090)"]


def test_a_required_attribute_gets_a_dummy_and_items_are_reached() -> None:
    ds = ct()
    ds.AnatomicRegionSequence = [Dataset()]
    code = ds.AnatomicRegionSequence[0]
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
    places = {"(0008,2218)>(0008,0104)", "(0018,0060)", "(0099,1001)", "(0018,0050)>(0008,0104)"}
    made = outcome_of(ds, Verdict(removed=frozenset(places)))
    assert not isinstance(made, Quarantined), made
    assert made[1].KVP is None
    assert made[1].AnatomicRegionSequence[0].CodeMeaning == "REMOVED"


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("burned_in_annotation", {"BurnedInAnnotation": "YES"}),
        ("recognizable_features", {"RecognizableVisualFeatures": "YES"}),
        ("secondary_capture", {"ConversionType": "WSD"}),
        ("burnt_in_text_likely", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
    ],
    ids=["burned in", "recognizable", "capture", "screen"],
)
def test_a_reason_that_a_person_overrules_stops_no_more(code: str, change: dict[str, Any]) -> None:
    ds = ct(rows=64, columns=64)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    stopped = outcome_of(ds, verdicts.NONE)
    assert isinstance(stopped, Quarantined)
    assert stopped.reason_code == code
    other = outcome_of(ds, Verdict(accepted=verdicts.PICTURE - {code}))
    assert isinstance(other, Quarantined)
    made = outcome_of(ds, Verdict(accepted=frozenset({code}), boxes=(Box(8, 4, 40, 12, verdicts.DRAWN),)))
    assert not isinstance(made, Quarantined), made
    assert made[0].boxes[0] == Box(8, 4, 40, 12, verdicts.DRAWN)
    assert len(np.unique(made[1].pixel_array[4:12, 8:40])) == 1
    assert "113101" in [item.CodeValue for item in made[1].DeidentificationMethodCodeSequence]


@pytest.mark.real_data
def test_a_capture_that_a_person_looked_at_loses_the_boxes_and_nothing_else(tmp_path: Path) -> None:
    source = next((shared_data_dir() / "dicom").rglob("examples_rgb_color.dcm"))
    accepted = frozenset({"ultrasound_without_regions"})
    verdict = Verdict(accepted=accepted, boxes=(Box(0, 0, 320, 20, verdicts.DRAWN),))
    outcome = deidentify_file(source, tmp_path / "out.dcm", replace(DEFAULT, verdict=verdict))
    assert isinstance(outcome, Released), outcome
    before, after = dcmread(source).pixel_array, dcmread(tmp_path / "out.dcm").pixel_array
    inside = np.zeros(after.shape[:2], bool)
    for box in outcome.boxes:
        inside[box.top : box.bottom, box.left : box.right] = True
    assert (after[:20] == after[0, 0]).all()
    assert not np.array_equal(before[:20], after[:20])
    assert np.array_equal(before[~inside], after[~inside])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"accept": []}, "fields"),
        ({"accepted": ["unknown_sop_class"]}, "accepted"),
        ({"accepted": "secondary_capture"}, "accepted"),
        ({"boxes": [[0, 0, 0, 5]]}, "boxes"),
        ({"boxes": [[0, 0, 5, True]]}, "boxes"),
        ({"boxes": [[0, 0, 5, 5]] * 101}, "at most 100"),
        ({"removed": ["PatientName"]}, "removed"),
        ({"removed": ["(0008,0070)"], "standing": ["(0008,0070)"]}, "different"),
    ],
    ids=["unknown", "never", "text", "empty box", "truth", "many", "keyword", "both"],
)
def test_what_is_no_verdict_is_refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(VerdictError, match=words):
        verdicts.parse(content)


def test_a_verdict_is_read_as_it_was_written() -> None:
    verdict = Verdict(frozenset({"secondary_capture"}), (Box(1, 2, 3, 4, verdicts.DRAWN),), MACHINE)
    assert verdicts.parse(verdict.as_json()) == verdict
    assert verdict | verdicts.NONE == verdict
