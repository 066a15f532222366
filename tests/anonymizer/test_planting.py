"""Planted identifiers: nothing of what a file holds outside the kept places comes out."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

from anonymizer.engine import Quarantined, deidentify
from tests.anonymizer import raw
from tests.anonymizer.marks import Marks
from tests.anonymizer.material import UNSEEN
from tests.anonymizer.planting import LAYERS
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

_SOP_CLASS, _PATIENT_ID = 0x00080016, 0x00100020


@dataclass(frozen=True)
class Base:
    """A real file with an ordinary PatientID, and whether it is released without marks."""

    sop_class_uid: str
    file: raw.RawFile
    released: bool
    name: str


def _released(file: raw.RawFile) -> bool:
    return not isinstance(deidentify(raw.write(file), UNSEEN), Quarantined)


def _base(path: Path) -> Base | None:
    try:
        file = raw.read(path.read_bytes())
    except (ValueError, struct.error, zlib.error, KeyError, IndexError):
        return None
    uid = file.body.get(_SOP_CLASS)
    if uid is None or not isinstance(uid.value, bytes) or not uid.value.strip(b"\0 "):
        return None
    file.body[_PATIENT_ID] = raw.Raw("LO", b"4711-AB")
    return Base(uid.value.decode("ascii").strip("\0 "), file, _released(file), path.name)


@lru_cache(maxsize=1)
def bases() -> tuple[Base, ...]:
    """Return a file for each SOP class and transfer syntax of the public data; a released one if any."""
    found: dict[tuple[str, str], Base] = {}
    paths = (path for path in (shared_data_dir() / "dicom").rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: (path.stat().st_size, str(path))):
        base = _base(path)
        if base is None:
            continue
        key = (base.sop_class_uid, base.file.transfer_syntax)
        if key not in found or (base.released and not found[key].released):
            found[key] = base
    return tuple(found[key] for key in sorted(found))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_no_mark_comes_out_of_any_sop_class_and_transfer_syntax(layer: str) -> None:
    leaks: list[tuple[str, str, list[str]]] = []
    stopped: list[tuple[str, str]] = []
    for base in bases():
        marks = Marks()
        outcome = deidentify(raw.write(LAYERS[layer](base.file, marks)), UNSEEN)
        if isinstance(outcome, Quarantined):
            assert outcome.reason_code
            assert marks.survivors_in_text(outcome.reason) == []
            if base.released and outcome.reason_code != "residual_identifier":
                stopped.append((base.name, outcome.reason))
            continue
        found = marks.survivors(b"".join(outcome[1]))
        if found:
            leaks.append((base.name, base.sop_class_uid, found))
    assert leaks == []
    assert stopped == []
