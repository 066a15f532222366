"""Orthanc as a peer: a real PACS with an interface to look inside."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.dicom_node.support import free_port, kill_group, listening, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ORTHANC = Path("/usr/sbin/Orthanc")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    dicom_port: int
    http_port: int

    def get(self, path: str) -> Any:
        """Ask its REST interface."""
        answer = httpx.get(f"http://127.0.0.1:{self.http_port}/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def instances(self) -> list[str]:
        """Return Orthanc's ids of what it stores."""
        return list(self.get("instances"))

    def file(self, instance: str) -> bytes:
        """Return a stored instance as a Part 10 file."""
        answer = httpx.get(f"http://127.0.0.1:{self.http_port}/instances/{instance}/file", timeout=30)
        answer.raise_for_status()
        return answer.content

    def send(self, files: list[bytes], ae_title: str, port: int) -> dict[str, Any]:
        """Let Orthanc send Part 10 files to a peer of ours."""
        base = f"http://127.0.0.1:{self.http_port}"
        ids = [httpx.post(f"{base}/instances", content=file, timeout=30).json()["ID"] for file in files]
        modality = {"AET": ae_title, "Host": "127.0.0.1", "Port": port}
        httpx.put(f"{base}/modalities/peer", json=modality, timeout=30).raise_for_status()
        answer = httpx.post(f"{base}/modalities/peer/store", json=ids, timeout=60)
        return {"status": answer.status_code, **answer.json()}


@contextmanager
def running_orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """Run Orthanc in a folder of its own."""
    orthanc = Orthanc(free_port(), free_port())
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "peer",
        "DicomAet": "ORTHANC",
        "DicomPort": orthanc.dicom_port,
        "HttpPort": orthanc.http_port,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
        **configuration,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    child = subprocess.Popen(
        [program(ORTHANC), str(folder / "orthanc.json")],
        start_new_session=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: listening(orthanc.dicom_port) and listening(orthanc.http_port), "Orthanc listens", 60
        )
        yield orthanc
    finally:
        kill_group(child)
