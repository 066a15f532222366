"""Every file of the shared public data comes out without residue, or is stopped with a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
from pydicom import dcmread
from pydicom._uid_dict import UID_dictionary

from anonymizer.engine import Quarantined, deidentify_file
from anonymizer.keep_list import sop_classes
from anonymizer.options import Option, codes_of
from anonymizer.verify.identifiers import words_of
from tests.anonymizer.material import UNSEEN
from tests.anonymizer.residue import find_residue, identifiers_of
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

KNOWN: Final = frozenset(UID_dictionary) | sop_classes()
# Source Image Sequence (type 2) comes out empty by the Basic Profile; Common Instance Reference stays.
BASIC_PROFILE: Final = "ReferencedSeriesSequence present but Instance does not reference Instances"
# A patient called like a part of the body: BodyPartExamined goes, and Laterality is asked for instead.
NO_BODY_PART: Final = "Missing attribute Type 2C Conditional Element=<Laterality>"
DCIODVFY: Final = "/usr/bin/dciodvfy"
UID_OF_DEFLATED: Final = "1.2.840.10008.1.2.1.99"


def _files() -> list[Path]:
    return sorted(path for path in (shared_data_dir() / "dicom").rglob("*") if path.is_file())


def _residue(source: Path, target: Path) -> list[str]:
    """Look with pydicom, not with our reader, for what identified the original."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = identifiers_of(dcmread(source), known=KNOWN)
        written = dcmread(target)
        ours = {
            str(written.PatientID).lower(),
            *words_of(" ".join(meaning for _, meaning in codes_of(Option))),
        }
        return [
            residue.where for residue in find_residue(target, [w for w in wanted if w.lower() not in ours])
        ]


@pytest.mark.real_data
@pytest.mark.slow
def test_every_file_comes_out_without_residue_or_is_stopped_with_a_reason(tmp_path: Path) -> None:
    reasons: Counter[str] = Counter()
    leaks: list[tuple[str, list[str]]] = []
    target = tmp_path / "out.dcm"
    files = _files()
    for path in files:
        target.unlink(missing_ok=True)
        outcome = deidentify_file(path, target, UNSEEN)
        if isinstance(outcome, Quarantined):
            assert outcome.reason_code
            assert outcome.reason
            assert not target.exists()
            reasons[outcome.reason_code] += 1
            continue
        reasons["released"] += 1
        found = _residue(path, target)
        if found:
            leaks.append((path.name, found))
    assert leaks == []
    assert sum(reasons.values()) == len(files) >= 685
    assert reasons["released"] >= 420
    assert "internal_error" not in reasons


def _errors(path: Path) -> set[str]:
    run = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (run.stdout + run.stderr).splitlines()
    return {
        line
        for line in lines
        if line.startswith("Error")
        and not any(expected in line for expected in (BASIC_PROFILE, NO_BODY_PART))
    }


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.dicom3tools
def test_an_instance_is_no_less_conformant_than_before(tmp_path: Path) -> None:
    if shutil.which(DCIODVFY) is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dciodvfy is missing; tests/peers.sh installs it")
        pytest.skip("no dciodvfy")
    worse: list[tuple[str, set[str]]] = []
    checked: Counter[str] = Counter()
    target = tmp_path / "out.dcm"
    for path in _files():
        outcome = deidentify_file(path, target, UNSEEN)
        if isinstance(outcome, Quarantined) or checked[outcome.sop_class_uid] >= 2:
            continue
        if dcmread(target, stop_before_pixels=True).file_meta.TransferSyntaxUID == UID_OF_DEFLATED:
            continue  # dciodvfy does not inflate
        checked[outcome.sop_class_uid] += 1
        new = _errors(target) - _errors(path)
        if new:
            worse.append((path.name, new))
    assert len(checked) >= 10
    assert worse == []
