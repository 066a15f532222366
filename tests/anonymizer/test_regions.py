"""Fixed regions: the table, what staff add to it, and what ultrasound says of itself."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from anonymizer import regions
from anonymizer.boxes import Box
from anonymizer.elements import Element, Item, Syntax
from anonymizer.errors import TableError
from anonymizer.profiles import load_profile

LITTLE = Syntax(implicit=False, little=True)
ROW: dict[str, Any] = {
    "modality": "US",
    "manufacturer": "Maker Inc.",
    "model": "Scan 1",
    "rows": 480,
    "columns": 640,
    "boxes": [[0, 0, 640, 40]],
    "source": "seen on its pictures",
}


def _machine(modality: str, manufacturer: str, model: str) -> Item:
    texts = {0x00080060: ("CS", modality), 0x00080070: ("LO", manufacturer), 0x00081090: ("LO", model)}
    return {tag: Element(tag, vr, text.encode()) for tag, (vr, text) in texts.items()}


def _header(*bounds: tuple[int, int, int, int], little: bool = True) -> Item:
    order = "<L" if little else ">L"
    items = tuple(
        {
            tag: Element(tag, "UL", struct.pack(order, value))
            for tag, value in zip((0x00186018, 0x0018601A, 0x0018601C, 0x0018601E), bound, strict=True)
        }
        for bound in bounds
    )
    return {0x00186011: Element(0x00186011, "SQ", items)}


def test_every_row_that_comes_with_the_product_has_boxes_within_its_image() -> None:
    rows = regions.known()
    assert len(rows) >= 4
    for row in rows:
        assert row.source
        assert row.rows > 0
        assert row.columns > 0
        assert all(box.clipped(row.rows, row.columns) == box for box in row.boxes)


@pytest.mark.parametrize("row", regions.known(), ids=lambda row: f"{row.model}-{row.rows}")
def test_a_row_is_found_by_what_its_machine_writes(row: regions.Region) -> None:
    machine = _machine(row.modality, row.manufacturer, row.model)
    assert regions.of_machine(machine, regions.known(), row.rows, row.columns) == list(row.boxes)
    assert regions.of_machine(machine, regions.known(), row.rows + 1, row.columns) == []


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (("US", "MAKER INC", "scan-1"), 1),
        (("US ", "Maker Inc. ", "Scan 1\0"), 1),
        (("US", "Maker Inc.", "Scan 10"), 0),
        (("CT", "Maker Inc.", "Scan 1"), 0),
        (("US", "", ""), 0),
    ],
    ids=["spelling", "padding", "other-model", "other-modality", "unnamed"],
)
def test_a_machine_is_known_by_letters_and_digits(machine: tuple[str, str, str], found: int) -> None:
    table = regions.parse({"rows": [ROW]})
    assert len(regions.of_machine(_machine(*machine), table, 480, 640)) == found


def test_what_a_row_leaves_open_fits_every_image() -> None:
    table = regions.parse({"rows": [{**ROW, "model": "", "rows": 0, "columns": 0}]})
    boxes = regions.of_machine(_machine("US", "Maker Inc.", "Scan 2"), table, 30, 50)
    assert boxes == [Box(0, 0, 50, 30, regions.TABLE)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"boxes": []}, "boxes"),
        ({"boxes": [[0, 0, 640]]}, "boxes"),
        ({"boxes": [[5, 0, 5, 40]]}, "boxes"),
        ({"boxes": [[0, 0, 640, 70000]]}, "boxes"),
        ({"boxes": [[0, 0, 640, "40"]]}, "boxes"),
        ({"rows": -1}, "rows"),
        ({"columns": True}, "columns"),
        ({"model": None}, "model"),
        ({"source": " "}, "source"),
        ({"modality": "", "manufacturer": "", "model": ""}, "machine"),
        ({"colour": "red"}, "fields"),
    ],
    ids=str,
)
def test_a_row_that_is_not_as_expected_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(TableError, match=f"row 2.*{field}"):
        regions.parse({"rows": [ROW, {**ROW, **change}]})


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(TableError, match="expected a list of rows"):
        regions.parse({"regions": []})


@pytest.mark.parametrize("little", [True, False], ids=["little", "big"])
def test_all_outside_the_ultrasound_regions_is_masked(little: bool) -> None:
    boxes = regions.of_header(
        _header((10, 20, 99, 59), (30, 60, 50, 79), little=little),
        Syntax(implicit=False, little=little),
        90,
        120,
    )
    assert boxes is not None
    masked = {(x, y) for b in boxes for x in range(b.left, b.right) for y in range(b.top, b.bottom)}
    kept = {(x, y) for x in range(10, 100) for y in range(20, 60)}
    kept |= {(x, y) for x in range(30, 51) for y in range(60, 80)}
    assert masked == {(x, y) for x in range(120) for y in range(90)} - kept
    assert {box.source for box in boxes} == {regions.HEADER}


@pytest.mark.parametrize(
    "bounds",
    [[], [(0, 0, 121, 50)], [(0, 0, 50, 91)], [(50, 0, 50, 40)], [(0, 0, 99, 40), (60, 40, 10, 50)]],
    ids=["none", "too-wide", "too-high", "empty", "one-of-two"],
)
def test_regions_that_do_not_fit_the_image_are_not_believed(bounds: list[tuple[int, int, int, int]]) -> None:
    assert regions.of_header(_header(*bounds), LITTLE, 90, 120) is None


def test_a_region_may_end_one_pixel_outside() -> None:
    boxes = regions.of_header(_header((0, 30, 120, 90)), LITTLE, 90, 120)
    assert boxes == [Box(0, 0, 120, 30, regions.HEADER)]


def test_a_region_without_bounds_is_not_believed() -> None:
    item = _header((0, 0, 50, 50))
    assert regions.of_header({0x00186011: Element(0x00186011, "SQ", ({},))}, LITTLE, 90, 120) is None
    assert regions.of_header({0x00186011: Element(0x00186011, "UN", b"")}, LITTLE, 90, 120) is None
    assert regions.of_header({}, LITTLE, 90, 120) is None
    assert regions.of_header(item, LITTLE, 90, 120) is not None


def test_the_rows_of_a_profile_count_for_its_hash_whatever_their_order() -> None:
    first = regions.parse({"rows": [ROW]})
    both = regions.parse({"rows": [ROW, {**ROW, "boxes": [[1, 1, 2, 2]]}]})
    plain = load_profile()
    digests = {replace(plain, regions=rows).hash for rows in ((), first, both)}
    assert len(digests) == 3
    assert replace(plain, regions=()).hash == plain.hash
    assert replace(plain, regions=both).hash == replace(plain, regions=both[::-1]).hash
