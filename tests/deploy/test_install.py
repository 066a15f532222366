"""The installer, on sources of packages that these tests make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "deploy" / "install.sh"


def _wheel(folder: Path, needs: list[str]) -> None:
    """Write a wheel of PyTorch's name with the given requirements and nothing in it."""
    info = "torch-2.13.0.dist-info"
    metadata = "".join(
        ["Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n", *[f"Requires-Dist: {n}\n" for n in needs]]
    )
    with zipfile.ZipFile(folder / "torch-2.13.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def blank_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it but pip, to be copied."""
    folder = tmp_path_factory.mktemp("blank") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    return folder


def _install(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(INSTALL), str(tmp_path / "venv")],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_installing_stops_with_advice_when_cuda_packages_would_come(tmp_path: Path) -> None:
    _wheel(tmp_path, ['nvidia-cublas==13.0.0; platform_system == "Linux"', "sympy>=1.13"])
    done = _install(tmp_path)
    assert done.returncode == 2
    assert "TORCH_INDEX_URL" in done.stderr
    assert "GPU=1" in done.stderr
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/torch*"))


@pytest.mark.parametrize(
    ("needs", "gpu"),
    [
        (["nvidia-cublas==13.0.0"], "1"),
        (["sympy>=1.13"], ""),
        (['nvidia-cublas==13.0.0; sys_platform == "win32"'], ""),
    ],
)
def test_installing_goes_on_when_cuda_is_wanted_or_would_not_come(
    tmp_path: Path, blank_venv: Path, needs: list[str], gpu: str
) -> None:
    shutil.copytree(blank_venv, tmp_path / "venv", symlinks=True)
    _wheel(tmp_path, needs)
    done = _install(tmp_path, GPU=gpu)
    assert "CUDA" not in done.stderr
    assert done.returncode == 1  # pip stops later: this source holds one wheel alone


def test_a_python_that_is_too_old_or_missing_is_named(tmp_path: Path) -> None:
    done = _install(tmp_path, PYTHON="no-such-python")
    assert done.returncode == 2
    assert "no-such-python not found; expected Python 3.11 or 3.12" in done.stderr
