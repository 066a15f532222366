"""Where the shared public data lies, and what to do when it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data_dir() -> Path:
    """Return the folder of public data; without it fail in CI and skip elsewhere."""
    folder = Path(os.environ.get("CLOISTER_SHARED_DATA", _DEFAULT))
    if (folder / "MANIFEST.tsv").is_file():
        return folder
    message = f"{folder}: no MANIFEST.tsv; set CLOISTER_SHARED_DATA to the folder of public DICOM data"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
