"""What the tests of inference share: a real ONNX package, a radiograph, the IOD checker."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.package import Package, open_package, write_package
from inference.session import ModelSession
from tests.inference.material import make_card, make_onnx
from tests.inference.segment_material import make_segment_card, make_segment_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.card import ModelCard

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


@pytest.fixture
def segmenting(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Callable[..., ModelSession]:
    """Write the package of a segmenting model and open it."""

    def do(card: ModelCard | None = None, **model: Any) -> ModelSession:
        card = card or make_segment_card()
        folder = tmp_path / "package"
        write_package(folder, make_segment_onnx(size=card.input.size, **model), card, signing_key)
        return ModelSession(open_package(folder, {"site": signing_key.public_key()}))

    return do
