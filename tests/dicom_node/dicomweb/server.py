"""A DICOMweb service on a port of this machine, and what clients send it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from dicom_node.dicomweb.frame import Frame
from tests.dicom_node.support import ct, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from dicom_node.query import Query, StoredInstance

BOUNDARY = "a-boundary"
STOW = {"content-type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}


class EmptyCatalogue:
    """A catalogue of nothing."""

    def find(self, query: Query) -> list[dict[str, str]]:
        del query
        return []

    def count(self, query: Query) -> int:
        del query
        return 0

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        del study_uid, series_uid, sop_uid
        return ()


def frame(failures: list[Exception]) -> Frame:
    return Frame(EmptyCatalogue(), lambda request: str(request.base_url).rstrip("/"), failures.append)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application from a thread; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the service listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def part(content: bytes, kind: str = "application/dicom") -> bytes:
    return f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"


def message(parts: Iterable[bytes]) -> bytes:
    return b"".join(part(content) for content in parts) + f"--{BOUNDARY}--\r\n".encode()


def instance(folder: Path, number: int = 1, study: str = "1.2.1", **changes: Any) -> bytes:
    """Return a Part 10 file."""
    uid = f"{study}.1.{number}"
    values = {"SOPInstanceUID": uid, "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1"}
    return save(ct(values, **changes), folder / f"{number}.dcm").read_bytes()
