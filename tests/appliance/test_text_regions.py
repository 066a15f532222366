"""Regions that staff draw: kept for one machine, checked, recorded, and blacked out in what is released."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import select

from anonymizer.profiles import load_profile
from appliance import crossing, text_regions
from appliance.crossing import InstanceItem
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalLedgerEntry, Instance
from appliance.db.engine import reading
from appliance.evidence import gathering
from appliance.text_regions import Machine, TextRegionError
from tests.anonymizer.material import ct, encode
from tests.anonymizer.node import Node, make_node, study_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ACTOR = "0" * 32
CT = Machine("CT", "Maker", "Model 1", 8, 8)
BOXES = [[0, 0, 8, 2], [5, 6, 8, 8]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def _entries(node: Node, kind: str) -> list[tuple[str, str | None, dict[str, object]]]:
    with reading(node.clinical.engine) as session:
        rows = session.scalars(select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == kind))
        return [(row.actor, row.subject_id, json.loads(row.body)) for row in rows]


def _released(node: Node, study: int) -> Path:
    before = {bundle.folder for bundle in crossing.read_bundles(node.settings)}
    assert node.release(node.add_study(study_of(1, study=study))).state == WorkState.DONE
    [bundle] = [one for one in crossing.read_bundles(node.settings) if one.folder not in before]
    [item] = bundle.items
    assert isinstance(item, InstanceItem)
    return bundle.folder / item.file


def test_what_staff_draw_is_black_in_what_is_released_until_they_remove_it(node: Node) -> None:
    original = np.frombuffer(ct().PixelData, "<u2").reshape(8, 8)
    assert np.array_equal(dcmread(_released(node, 1)).pixel_array, original)
    region = text_regions.add(node.clinical, CT, BOXES, "label of the console", actor=ACTOR)
    masked = dcmread(_released(node, 2)).pixel_array
    inside = np.zeros((8, 8), bool)
    inside[:2, :] = inside[6:, 5:] = True
    assert len(np.unique(masked[inside])) == 1
    assert len(np.unique(original[inside])) > 1
    assert np.array_equal(masked[~inside], original[~inside])
    text_regions.remove(node.clinical, region.id, actor=ACTOR)
    assert np.array_equal(dcmread(_released(node, 3)).pixel_array, original)


def test_the_ledger_says_which_table_each_release_had(node: Node) -> None:
    _released(node, 1)
    region = text_regions.add(node.clinical, CT, BOXES, "", actor=ACTOR)
    _released(node, 2)
    text_regions.remove(node.clinical, region.id, actor=ACTOR)
    _released(node, 3)
    [(actor, subject, added)] = _entries(node, text_regions.ADDED)
    [(_, gone, removed)] = _entries(node, text_regions.REMOVED)
    assert (actor, subject, gone) == (ACTOR, region.id, region.id)
    assert (added["boxes"], added["content"]) == (2, removed["content"])
    used = [body["profile"] for _, _, body in _entries(node, "study.deidentified")]
    assert used == [load_profile().hash, added["profile"], removed["profile"]]
    assert used[0] == used[2] != used[1]


def test_an_instance_carries_the_hash_of_the_table_that_it_was_made_with(node: Node) -> None:
    text_regions.add(node.clinical, CT, BOXES, "", actor=ACTOR)
    digest = text_regions.profile_in_force(node.clinical).hash
    assert digest[:8] in str(dcmread(_released(node, 1)).DeidentificationMethod)


@pytest.mark.parametrize(
    "other",
    [{"model": "Model 2"}, {"manufacturer": "Other"}, {"modality": "MR"}, {"rows": 9}, {"columns": 7}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_region_counts_for_its_machine_and_size_alone(other: dict[str, str | int], node: Node) -> None:
    text_regions.add(node.clinical, CT, [[0, 0, 2, 2]], "", actor=ACTOR)
    changed = Machine(**{**CT.__dict__, **other})
    with reading(node.clinical.engine) as session:
        assert len(text_regions.fitting(session, CT)) == 1
        assert text_regions.fitting(session, changed) == ()


def test_what_comes_with_the_product_is_found_beside_what_staff_drew(node: Node) -> None:
    known = text_regions.bundled()[0]
    machine = Machine(known.modality, known.manufacturer, known.model, known.rows, known.columns)
    text_regions.add(node.clinical, machine, [[1, 2, 30, 40]], "", actor=ACTOR)
    with reading(node.clinical.engine) as session:
        found = text_regions.fitting(session, machine)
        assert [row.id for row in text_regions.listed(session)]
    assert [len(region.boxes) for region in found] == [len(known.boxes), 1]
    assert found[1].source == "drawn in the panel"


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([], "1 to 40"),
        ([[0, 0, 1, 1]] * 41, "1 to 40"),
        ([[0, 0, 8, 8], [0, 0, 9, 8]], "box 2: expected it inside the picture of 8 x 8"),
        ([[0, 0, 8, 9]], "box 1"),
        ([[-1, 0, 8, 8]], "box 1"),
        ([[3, 0, 3, 8]], "box 1"),
        ([[0, 5, 8, 4]], "box 1"),
        ([[0, 0, 8]], "whole pixels"),
        ([[0, 0, 8, 2.5]], "whole pixels"),
        ([[0, 0, 8, True]], "whole pixels"),
    ],
    ids=["none", "many", "wide", "high", "negative", "empty", "upside down", "three", "half", "bool"],
)
def test_a_box_that_is_none_is_refused_by_its_number(
    boxes: Sequence[Sequence[int]], said: str, node: Node
) -> None:
    with pytest.raises(TextRegionError, match=said):
        text_regions.add(node.clinical, CT, boxes, "", actor=ACTOR)
    with reading(node.clinical.engine) as session:
        assert text_regions.listed(session) == []
    assert _entries(node, text_regions.ADDED) == []


@pytest.mark.parametrize("field", ["modality", "manufacturer", "model"])
@pytest.mark.parametrize("value", ["", " . ", "M" * 65], ids=["none", "no letter", "long"])
def test_a_machine_without_a_name_would_stand_for_all_and_is_refused(
    field: str, value: str, node: Node
) -> None:
    with pytest.raises(TextRegionError, match="expected a name"):
        text_regions.add(node.clinical, Machine(**{**CT.__dict__, field: value}), BOXES, "", actor=ACTOR)


def test_a_long_note_and_a_removal_of_nothing_are_refused(node: Node) -> None:
    for note in ("x" * 201, "two\nlines"):
        with pytest.raises(TextRegionError, match="note"):
            text_regions.add(node.clinical, CT, BOXES, note, actor=ACTOR)
    with pytest.raises(TextRegionError, match="gone"):
        text_regions.remove(node.clinical, "0" * 32, actor=ACTOR)


def test_there_is_an_end_to_what_is_kept(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_regions, "MAX_REGIONS", 2)
    for _ in range(2):
        text_regions.add(node.clinical, CT, BOXES, "", actor=ACTOR)
    with pytest.raises(TextRegionError, match="at most 2"):
        text_regions.add(node.clinical, CT, BOXES, "", actor=ACTOR)


def test_a_machine_is_read_as_the_anonymizer_reads_it(node: Node, tmp_path: Path) -> None:
    node.add_study(study_of(1))
    with reading(node.clinical.engine) as session:
        path = node.clinical.root / session.scalars(select(Instance.path)).one()
    assert text_regions.machine_of(path) == CT
    without = ct()
    del without.PixelData
    (tmp_path / "without.dcm").write_bytes(encode(without))
    (tmp_path / "other.dcm").write_bytes(b"no DICOM")
    for name in ("without.dcm", "other.dcm", "missing.dcm"):
        with pytest.raises(TextRegionError, match="instance"):
            text_regions.machine_of(tmp_path / name)


def test_the_evidence_pack_lists_what_staff_drew(node: Node) -> None:
    text_regions.add(node.clinical, CT, BOXES, "label of the console", actor=ACTOR)
    _released(node, 1)
    facts = gathering.gather(node.clinical, 1)
    region = {"modality": "CT", "manufacturer": "Maker", "model": "Model 1", "rows": 8, "columns": 8}
    assert facts["profile"]["text_regions_of_staff"] == [{**region, "boxes": BOXES}]
    assert facts["profiles_used"] == [{"hash": facts["profile"]["hash"], "revisions": 1}]


@pytest.mark.parametrize(
    ("profile", "used"),
    [("research-default", True), ("modified-dates", False), ("no-such-profile", False)],
    ids=["cleans pixels", "cleans none", "missing"],
)
def test_the_panel_is_told_when_the_profile_uses_no_region(profile: str, used: bool, node: Node) -> None:
    deidentification = node.settings.deidentification.model_copy(update={"profile": profile})
    settings = node.settings.model_copy(update={"deidentification": deidentification})
    assert text_regions.are_used(replace(node.clinical, settings=settings)) is used
