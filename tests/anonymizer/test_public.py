"""The anonymizer as a library: what can be imported, and the documentation's example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

import anonymizer
from tests.anonymizer.material import ct, encode

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "deidentification.md").read_text()


@pytest.mark.parametrize("name", anonymizer.__all__)
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    assert getattr(anonymizer, name).__name__ == name
    assert getattr(anonymizer, name).__module__.startswith("anonymizer.")


def test_importing_the_package_loads_no_dictionary() -> None:
    code = "import sys, anonymizer; sys.exit('pydicom' in sys.modules or hasattr(anonymizer, 'nothing'))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"## As a library\n.*?```python\n(.*?)```", DOCS, re.DOTALL)
    assert example is not None
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(encode(ct()))
    (tmp_path / "project.key").write_bytes(b"\x07" * 32)
    monkeypatch.chdir(tmp_path)
    exec(compile(example[1], "docs/deidentification.md", "exec"), {})  # noqa: S102 - our own documentation
    (written,) = (tmp_path / "out").glob("*.dcm")
    assert dcmread(written).PatientIdentityRemoved == "YES"
