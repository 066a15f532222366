"""Queries, retrievals and the web over mutual TLS, with real peers."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import FastAPI
from pydicom import dcmread

from dicom_node import scu
from dicom_node.dicomweb import stow, stow_client
from dicom_node.dicomweb.http import WebDestination
from dicom_node.finding import find_service
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller
from dicom_node.query import Level, Query, StoredInstance
from dicom_node.query_scu import find
from dicom_node.retrieve_scu import get, move
from dicom_node.retrieving import get_service, move_service
from dicom_node.scp import SCPConfig, StorageSCP
from dicom_node.scu import Destination
from dicom_node.tls import TLSOptions
from tests.dicom_node.archives import orthanc_archive
from tests.dicom_node.dicomweb.server import frame
from tests.dicom_node.support import Heard, dcmtk, save, wait_until
from tests.dicom_node.support import ct as drawn
from tests.dicom_node.test_retrieve_scu import CT, STUDY, Patience, arrivals, held, sent, study
from tests.dicom_node.test_services import Everything, Shelf, Silent
from tests.dicom_node.test_tls import storescp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.dicom_node.authority import Authority, Issued
    from tests.dicom_node.support import RunningSCP


@pytest.mark.orthanc
def test_an_archive_is_asked_and_fetched_from_over_mutual_tls(
    run_scp: Callable[..., RunningSCP], inbox: Inbox, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("orthanc")
    scp = run_scp(plain=False, tls=ours.options(authority.file))
    settings: dict[str, Any] = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.file),
        "DicomModalities": {
            "ours": {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": scp.port, "UseDicomTls": True}
        },
    }
    paths, keys = study(tmp_path), {"StudyInstanceUID": STUDY}
    with orthanc_archive(tmp_path, **settings) as (_, plain):
        archive = Destination(plain.ae_title, plain.host, plain.port, 10, ours.options(authority.file))
        assert all(outcome.ok for outcome in scu.store(paths, archive, "CLOISTER"))
        answers = find(archive, "CLOISTER", Query(Level.STUDY, keys, limit=5))
        assert [one["StudyInstanceUID"] for one in answers.found] == [STUDY]
        done = get(archive, "CLOISTER", keys, Patience(), arrivals(inbox), sop_classes=[CT])
        assert (done.progress.completed, done.stored) == (5, 5)
        assert held(inbox) == sent(paths)
        assert move(archive, "CLOISTER", keys, Patience()).progress.completed == 5
        wait_until(lambda: len(scp.heard.received) == 5, "it sends them over TLS, too")
        with pytest.raises(scu.AssociationError):
            scu.associate(plain, "CLOISTER", [("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])])
    assert {caller.certificate_sha256 for caller in scp.heard.accepted} == {theirs.sha256}


class OneStudy(Shelf):
    """A catalogue of some files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(1)
        self.paths = paths

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        """Return all of them, whatever is asked for."""
        del study_uid, series_uid, sop_uid
        found = [(path, dcmread(path, stop_before_pixels=True)) for path in self.paths]
        return [
            StoredInstance(
                path.stem,
                path,
                ds.StudyInstanceUID,
                ds.SeriesInstanceUID,
                ds.SOPInstanceUID,
                ds.SOPClassUID,
                ds.file_meta.TransferSyntaxUID,
                path.stat().st_size,
                None,
            )
            for path, ds in found
        ]


@pytest.mark.dcmtk
def test_what_a_workstation_moves_goes_to_a_destination_over_tls(
    inbox: Inbox, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("room")
    paths = study(tmp_path)
    with storescp(tmp_path / "room", theirs, "+cf", authority.file) as port:
        room = Destination("ROOM", "127.0.0.1", port, 10, ours.options(authority.file))
        services = [
            move_service(OneStudy(paths), Silent(), {"ROOM": room}.get, "CLOISTER"),
        ]
        scp = StorageSCP(SCPConfig("CLOISTER"), inbox, Everything(), Heard(), services)
        try:
            target = ["-aem", "ROOM", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
            dcmtk("movescu", "-S", "-aec", "CLOISTER", *target, "127.0.0.1", str(scp.start()))
        finally:
            scp.stop()
        names = {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "room").iterdir()}
    assert names == {str(dcmread(path).SOPInstanceUID) for path in paths}


@pytest.mark.dcmtk
def test_workstations_query_and_retrieve_over_mutual_tls(
    inbox: Inbox, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("workstation")
    paths = study(tmp_path)
    shelf = OneStudy(paths)
    services = [find_service(shelf, "CLOISTER"), get_service(shelf, Silent())]
    config = SCPConfig("CLOISTER", plain=False, tls=ours.options(authority.file))
    scp = StorageSCP(config, inbox, Everything(), Heard(), services)
    port = scp.start()
    key = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"]
    shown: list[str | Path] = ["+tls", theirs.key, theirs.certificate, "+cf", authority.file]
    got = Inbox(tmp_path / "got", min_free_bytes=0)
    try:
        done = dcmtk("findscu", "-v", "-S", *shown, "-aec", "CLOISTER", *key, "127.0.0.1", str(port))
        assert "[1.2.0" in done.stdout + done.stderr
        assert dcmtk("findscu", "-S", *key, "127.0.0.1", str(port), check=False).returncode != 0
        archive = Destination("CLOISTER", "127.0.0.1", port, 10, theirs.options(authority.file))
        keys = {"StudyInstanceUID": STUDY}
        assert get(archive, "STATION", keys, Patience(), arrivals(got), sop_classes=[CT]).stored == 5
    finally:
        scp.stop()
    assert held(got) == sent(paths)


@contextmanager
def web_archive(inbox: Inbox, shown: Issued, ca: Path) -> Iterator[str]:
    """Serve our own STOW-RS over TLS that asks for a certificate of an authority."""
    reception = stow.Reception(
        inbox=inbox,
        caller_of=lambda _: Caller("WEB", "CLOISTER", "127.0.0.1"),
        on_stored=lambda *_: None,
        max_requests=2,
        timeout_s=10,
    )
    app = FastAPI()
    app.include_router(stow.router(frame([]), reception))
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        lifespan="off",
        ssl_certfile=shown.certificate,
        ssl_keyfile=shown.key,
        ssl_ca_certs=str(ca),
        ssl_cert_reqs=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the service listens")
    try:
        yield f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_result_is_stored_over_https_with_our_certificate_and_not_without(
    inbox: Inbox, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("web")
    file = save(drawn(SOPInstanceUID="1.2.3.4"), tmp_path / "one.dcm")
    with web_archive(inbox, theirs, authority.file) as url:
        outcome = stow_client.store(file, WebDestination(url, "token", ours.options(authority.file)))
        assert outcome.ok, outcome.reason
        stranger = stow_client.store(file, WebDestination(url, "token", TLSOptions(ca=authority.file)))
        assert (stranger.ok, stranger.retryable) == (False, True)
    (entry,) = inbox.entries(10)
    assert entry.sop_instance_uid == "1.2.3.4"
