"""DICOMweb archives: Orthanc with its plugin, and a server that answers as a test says."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from dicom_node.dicomweb.http import WebDestination
from tests.dicom_node.archives import orthanc_archive
from tests.dicom_node.support import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicom_node.scu import Destination
    from tests.dicom_node.orthanc import Orthanc

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BOUNDARY = "xyz"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@contextmanager
def orthanc_web_archive(folder: Path) -> Iterator[tuple[Orthanc, WebDestination, Destination]]:
    """Run Orthanc with DICOMweb; give where it is asked over the web, and over DIMSE."""
    with orthanc_archive(folder, Plugins=[program(PLUGIN)]) as (orthanc, destination):
        url = f"http://127.0.0.1:{orthanc.http_port}/dicom-web"
        yield orthanc, WebDestination(url, timeout_s=10), destination


def multipart(files: Sequence[bytes], *, closed: bool = True) -> bytes:
    """Return a message of Part 10 files."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files)
    return body + (f"--{BOUNDARY}--\r\n".encode() if closed else b"")


def answer_of(**values: str) -> dict[str, Any]:
    """Return an answer in the DICOM JSON model."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword  # noqa: PLC0415

    found = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        found[f"{tag:08X}"] = {"vr": dictionary_VR(tag), "Value": value.split("\\")}
    return found


@contextmanager
def web_server(reply: Callable[[str, dict[str, str]], tuple[int, str, bytes]]) -> Iterator[WebDestination]:
    """Serve what a test answers to path and parameters: status, content type, body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            parameters = {key: values[0] for key, values in parse_qs(parts.query).items()}
            status, kind, body = reply(parts.path, parameters)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield WebDestination(f"http://127.0.0.1:{server.server_address[1]}/web", timeout_s=3)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def as_json(rows: Sequence[dict[str, Any]]) -> tuple[int, str, bytes]:
    """Return a QIDO-RS reply."""
    return 200, "application/dicom+json", json.dumps(rows).encode()
