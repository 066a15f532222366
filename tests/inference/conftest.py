"""What the tests of inference share: a real ONNX package, a radiograph, the IOD checker."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.package import Package, open_package, write_package
from tests.inference.material import make_card, make_onnx

DCIODVFY = Path("/usr/bin/dciodvfy")


@pytest.fixture(scope="session")
def signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def package_folder(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Path:
    folder = tmp_path / "package"
    write_package(folder, make_onnx(), make_card(), signing_key)
    return folder


@pytest.fixture
def package(package_folder: Path, signing_key: Ed25519PrivateKey) -> Package:
    return open_package(package_folder, {"site": signing_key.public_key()})


class IODChecker:
    """dciodvfy, from dicom3tools."""

    def errors(self, path: Path) -> list[str]:
        done = subprocess.run([DCIODVFY, path], capture_output=True, check=False, timeout=60)
        lines = (done.stdout + done.stderr).decode("utf-8", errors="replace").splitlines()
        assert any(line in ("ComprehensiveSR", "SCImage", "Segmentation") for line in lines), (
            "dciodvfy did not know the IOD"
        )
        return [line for line in lines if line.startswith("Error")]


@pytest.fixture(scope="session")
def iod_checker() -> IODChecker:
    if not DCIODVFY.is_file():
        message = "dciodvfy is missing; install dicom3tools"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return IODChecker()
