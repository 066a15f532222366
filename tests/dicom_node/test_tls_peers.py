"""Peers with TLS that are not DCMTK: Orthanc both ways, and DICOMweb over https."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from dicom_node import scu, tls, web_probing
from dicom_node.dicomweb import stow_client
from dicom_node.dicomweb.http import WebDestination
from dicom_node.probing import StepFailedError, Trail, reach
from dicom_node.scu import Destination
from dicom_node.tls import TLSOptions
from tests.dicom_node.orthanc import Orthanc, running_orthanc
from tests.dicom_node.support import RunningSCP, ct, encoded, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.dicom_node.authority import Authority, Issued


@pytest.mark.orthanc
def test_orthanc_and_we_send_to_each_other_over_mutual_tls(
    run_scp: Callable[..., RunningSCP], authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("orthanc")
    scp = run_scp(plain=False, tls=ours.options(authority.file))
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.file),
        "DicomModalities": {
            "node": {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": scp.port, "UseDicomTls": True}
        },
    }
    with running_orthanc(tmp_path / "orthanc", **settings) as orthanc:
        ds = ct(size=600)
        path = save(ds, tmp_path / "a.dcm")
        options = ours.options(authority.file)
        destination = Destination("ORTHANC", "127.0.0.1", orthanc.dicom_port, 10, options)
        (outcome,) = scu.store([path], destination, "CLOISTER")
        assert outcome.ok, outcome.reason
        _send(orthanc, orthanc.instances()[0])
        wait_until(lambda: scp.heard.received, "it comes back")
    (entry,) = scp.heard.received
    assert entry.path.read_bytes().endswith(encoded(ds)[-600 * 600 * 2 :])
    assert scp.heard.accepted[-1].certificate_sha256 == theirs.sha256


def _send(orthanc: Orthanc, instance: str) -> None:
    import httpx  # noqa: PLC0415 -- this test alone

    url = f"http://127.0.0.1:{orthanc.http_port}/modalities/node/store"
    httpx.post(url, content=instance, timeout=30).raise_for_status()


class _QIDO(BaseHTTPRequestHandler):
    """Answers every query with nothing found."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the library's name
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that break the handshake off."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Forget it."""


@contextmanager
def dicomweb(shown: Issued) -> Iterator[str]:
    """Run a DICOMweb server with TLS; the https of the packaged Orthanc 1.10 ends at the first request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    with _Server(("127.0.0.1", 0), _QIDO) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}/dicom-web"
        server.shutdown()


def test_a_dicomweb_peer_is_known_by_its_authority_or_by_its_pinned_certificate(authority: Authority) -> None:
    theirs, known = authority.issue("web", signed_by_itself=True), authority.issue("web")
    with dicomweb(known) as url:
        web_probing.query(Trail(), WebDestination(url, "", TLSOptions(ca=authority.file)))
    pinned = TLSOptions(sha256=theirs.sha256)
    with dicomweb(theirs) as url:
        trail = Trail()
        reach(trail, web_probing.transport_of(WebDestination(url, "", pinned)))
        web_probing.query(trail, WebDestination(url, "", pinned))
        assert [step.name for step in trail.steps] == ["name", "connection", "tls", "qido"]
        for wrong in (TLSOptions(sha256="0" * 64), TLSOptions(ca=authority.file), TLSOptions()):
            with pytest.raises(StepFailedError):
                web_probing.query(Trail(), WebDestination(url, "", wrong))
        port = int(url.split(":")[2].split("/")[0])
        asyncio.run(_open(port, pinned))
        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(_open(port, TLSOptions(sha256="0" * 64)))


def test_a_result_goes_over_https_to_nobody_but_the_pinned_peer(authority: Authority, tmp_path: Path) -> None:
    file = save(ct(SOPInstanceUID="1.2.3.4"), tmp_path / "one.dcm")
    theirs = authority.issue("web", signed_by_itself=True)
    with dicomweb(theirs) as url:
        for options in (TLSOptions(sha256="0" * 64), TLSOptions(ca=authority.file), TLSOptions()):
            outcome = stow_client.store(file, WebDestination(url, "token", options))
            assert (outcome.ok, outcome.retryable, outcome.reason) == (False, True, "connect: no connection")
        outcome = stow_client.store(file, WebDestination(url, "token", TLSOptions(sha256=theirs.sha256)))
    assert (outcome.status, outcome.retryable) == (501, False), "it answered: it knows no POST"


async def _open(port: int, options: TLSOptions) -> None:
    context = tls.client_context(options)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")
    writer.close()
