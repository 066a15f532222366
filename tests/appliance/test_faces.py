"""A node whose profile removes faces: a head crosses without its face, a part of one waits."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import select

from appliance import crossing
from appliance.crossing import InstanceItem
from appliance.db.clinical import QuarantineItem
from appliance.db.engine import reading
from appliance.evidence import gathering
from appliance.node import open_clinical
from appliance.settings import load_settings
from tests.anonymizer import heads, scans
from tests.anonymizer.node import Node, make_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.anonymizer.scans import Slice


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    made.clinical.engine.dispose()
    made.config.write_text(made.config.read_text() + 'profile = "head"\n')
    settings = load_settings(made.config)
    seeing = Node(settings, made.config, open_clinical(settings), made.research)
    yield seeing
    seeing.clinical.engine.dispose()
    seeing.research.engine.dispose()


@pytest.fixture(scope="module")
def slices() -> list[Slice]:
    head = heads.drawn(Random(11))  # noqa: S311 - the same head each time
    return list(scans.slices(head, scans.Scan("CT", pixel_mm=4.0, gap_mm=8.0, field_mm=240.0)))


def test_a_head_crosses_without_its_face_and_the_evidence_says_so(node: Node, slices: list[Slice]) -> None:
    node.release(node.add_study([each.ds for each in slices]))
    [bundle] = crossing.read_bundles(node.settings)
    by_number = {each.ds.InstanceNumber: each for each in slices}
    face = gone = 0
    for item in bundle.items:
        assert isinstance(item, InstanceItem)
        after = dcmread(bundle.folder / item.file)
        before = by_number[after.InstanceNumber]
        changed = after.pixel_array != before.values
        assert not (changed & before.brain).any()
        face += int(before.face.sum())
        gone += int(np.sum(changed & before.face))
    assert gone / face > 0.97
    samples = gathering.gather(node.clinical, 2)["samples"]
    assert [sample["outcome"] for sample in samples] == ["released", "released"]


def test_a_part_of_a_head_waits_with_its_reason(node: Node, slices: list[Slice]) -> None:
    node.release(node.add_study([each.ds for each in slices[-9:]]))
    assert list(crossing.read_bundles(node.settings)) == []
    with reading(node.clinical.engine) as session:
        codes = session.scalars(select(QuarantineItem.reason_code)).all()
    assert list(codes) == ["face_not_removed"] * 9
