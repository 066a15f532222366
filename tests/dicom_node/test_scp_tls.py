"""Our SCP over TLS, with DCMTK and openssl as callers."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import scu
from dicom_node.scu import Destination
from dicom_node.tls import TLSError, TLSOptions
from tests.dicom_node.authority import Authority, Issued
from tests.dicom_node.support import (
    DCMTK,
    BytePeer,
    RunningSCP,
    associate_rq,
    ct,
    dcmtk,
    encoded,
    pdu,
    pdv,
    program,
    save,
    store_rq,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def secured(run_scp: Callable[..., RunningSCP], authority: Authority) -> RunningSCP:
    """Give an SCP that listens with TLS alone and wants a certificate."""
    return run_scp(plain=False, tls=authority.issue("cloister").options(authority.file))


def shown(issued: Issued, ca: Path) -> list[str | Path]:
    return ["+tls", issued.key, issued.certificate, "+cf", ca]


def echo(port: int, *options: str | Path) -> int:
    arguments = [*options, "-aet", "PACS", "-aec", "CLOISTER", "127.0.0.1", str(port)]
    return dcmtk("echoscu", *arguments, check=False).returncode


def client(authority: Authority, issued: Issued | None, port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=authority.file)
    if issued is not None:
        context.load_cert_chain(issued.certificate, issued.key)
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.dcmtk
def test_a_caller_with_a_certificate_is_heard_and_known_by_it(
    secured: RunningSCP, authority: Authority
) -> None:
    theirs = authority.issue("modality")
    assert echo(secured.port, *shown(theirs, authority.file)) == 0
    (caller,) = secured.heard.accepted
    assert (caller.tls, caller.certificate_sha256) == (True, theirs.sha256)


@pytest.mark.dcmtk
def test_callers_without_a_good_certificate_are_noted_by_address(
    secured: RunningSCP, authority: Authority
) -> None:
    foreign = Authority(authority.folder, "Other CA").issue("modality")
    expired = authority.issue("modality", days=(-30, -1))
    for issued in (foreign, expired):
        assert echo(secured.port, *shown(issued, authority.file)) != 0
    assert echo(secured.port, "+tla", "+cf", authority.file) != 0
    assert echo(secured.port) != 0, "without TLS"
    wait_until(lambda: len(secured.heard.rejected) == 4, "four callers noted")
    noted = {(caller.address, caller.tls, reason) for caller, reason in secured.heard.rejected}
    assert noted == {("127.0.0.1", True, "tls_failed")}
    assert not secured.heard.accepted


@pytest.mark.dcmtk
def test_a_caller_that_does_not_trust_us_does_not_send(secured: RunningSCP, authority: Authority) -> None:
    other = Authority(authority.folder, "Other CA")
    assert echo(secured.port, *shown(authority.issue("modality"), other.file)) != 0
    assert not secured.heard.accepted


@pytest.mark.dcmtk
def test_a_plain_and_a_tls_port_serve_side_by_side(
    run_scp: Callable[..., RunningSCP], authority: Authority, tmp_path: Path
) -> None:
    scp = run_scp(tls=authority.issue("cloister").options(authority.file))
    assert scp.port != scp.scp.tls_port
    path = save(ct(), tmp_path / "a.dcm")
    theirs = authority.issue("modality")
    titles = ("-aet", "PACS", "-aec", "CLOISTER", "127.0.0.1")
    dcmtk("storescu", *titles, str(scp.port), path)
    other = save(ct(), tmp_path / "b.dcm")
    dcmtk("storescu", *shown(theirs, authority.file), *titles, str(scp.scp.tls_port), other)
    assert [caller.tls for caller in scp.heard.accepted] == [False, True]
    assert len(scp.heard.received) == 2


@pytest.mark.dcmtk
@pytest.mark.parametrize("edge", [200, 512, 1448, 5000])
@pytest.mark.parametrize("pdu_bytes", [4096, 16384, 131072])
def test_instances_of_all_sizes_arrive_byte_for_byte(
    secured: RunningSCP, authority: Authority, tmp_path: Path, edge: int, pdu_bytes: int
) -> None:
    ds = ct(size=edge)
    path = save(ds, tmp_path / "a.dcm")
    theirs = authority.issue("modality")
    titles = ("-aet", "PACS", "-aec", "CLOISTER", "127.0.0.1", str(secured.port))
    dcmtk("storescu", "--max-send-pdu", str(pdu_bytes), *shown(theirs, authority.file), *titles, path)
    (entry,) = secured.heard.received
    assert entry.path.read_bytes().endswith(encoded(ds))


def test_our_scu_and_scp_speak_with_each_other(
    secured: RunningSCP, authority: Authority, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    options = authority.issue("peer", key=key).options(authority.file)
    destination = Destination("CLOISTER", "127.0.0.1", secured.port, timeout_s=10, tls=options)
    paths = [save(ct(size=size), tmp_path / f"{size}.dcm") for size in (16, 2000)]
    assert [outcome.status for outcome in scu.store(paths, destination, "PACS")] == [0, 0]


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 100, 16384, 20000])
def test_records_may_end_anywhere_inside_a_pdu(secured: RunningSCP, authority: Authority, cut: int) -> None:
    ds = ct(size=200)
    data = encoded(ds)
    stream = associate_rq([(CTImageStorage, [ExplicitVRLittleEndian])])
    with BytePeer.__new__(BytePeer) as peer:
        peer.socket = client(authority, authority.issue("peer"), secured.port)
        for start in range(0, len(stream), cut):
            peer.send(stream[start : start + cut])
        assert peer.receive()[0] == 0x02
        whole = pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, ds.SOPInstanceUID)))
        whole += pdu(0x04, pdv(1, 0x02, data))
        size = max(cut, len(whole) // 400)
        for start in range(0, len(whole), size):
            peer.send(whole[start : start + size])
        assert peer.status() == 0
        assert peer.release() == 0x06
    (entry,) = secured.heard.received
    assert entry.path.read_bytes().endswith(data)


def test_a_handshake_that_stalls_holds_nobody_else_up(
    run_scp: Callable[..., RunningSCP], authority: Authority
) -> None:
    scp = run_scp(
        plain=False, tls=authority.issue("cloister").options(authority.file), association_timeout_s=1.5
    )
    theirs = authority.issue("peer")
    stalled = [socket.create_connection(("127.0.0.1", scp.port), timeout=10) for _ in range(30)]
    stalled[0].sendall(b"\x16\x03\x01\x02\x00")
    started = time.monotonic()
    outcome = scu.echo(
        Destination("CLOISTER", "127.0.0.1", scp.port, 5, theirs.options(authority.file)), "PACS"
    )
    assert outcome.ok
    assert time.monotonic() - started < 1.5
    for connection in stalled:
        assert connection.recv(100) == b"", "closed when its time is up"
        connection.close()
    assert time.monotonic() - started < 8


def test_a_handshake_dripped_byte_by_byte_ends_in_time(
    run_scp: Callable[..., RunningSCP], authority: Authority
) -> None:
    scp = run_scp(
        plain=False, tls=authority.issue("cloister").options(authority.file), association_timeout_s=1
    )
    with socket.create_connection(("127.0.0.1", scp.port), timeout=0.2) as connection:
        connection.sendall(b"\x16\x03\x01" + struct.pack(">H", 16000))
        started = time.monotonic()
        gone = False
        while not gone and time.monotonic() - started < 6:
            try:
                connection.sendall(b"\x01")
                gone = connection.recv(10) == b""
            except TimeoutError:
                continue
            except OSError:
                gone = True
    assert gone
    assert time.monotonic() - started < 3


def test_a_connection_cut_inside_an_instance_leaves_nothing(
    secured: RunningSCP, authority: Authority
) -> None:
    ds = ct(size=200)
    with BytePeer.__new__(BytePeer) as peer:
        peer.socket = client(authority, authority.issue("peer"), secured.port)
        assert peer.associate()[0] == 0x02
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, ds.SOPInstanceUID))))
        peer.send(pdu(0x04, pdv(1, 0x02, encoded(ds)))[:30000])
    wait_until(lambda: secured.scp.association_count == 0, "the association ends")
    assert not secured.heard.received
    assert not list(secured.inbox.root.glob("entries/**/*.dcm"))


def test_stopping_amid_an_instance_stores_no_ciphertext(secured: RunningSCP, authority: Authority) -> None:
    ds = ct(size=1000)
    body = pdu(0x04, pdv(1, 0x02, encoded(ds)))
    with BytePeer.__new__(BytePeer) as peer:
        peer.socket = client(authority, authority.issue("peer"), secured.port)
        assert peer.associate()[0] == 0x02
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, ds.SOPInstanceUID))))
        peer.send(body[: len(body) // 2])
        secured.scp.stop(grace_s=0.1)
        assert not secured.heard.received


def test_a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not(
    run_scp: Callable[..., RunningSCP], authority: Authority
) -> None:
    first, second = authority.issue("cloister"), authority.issue("cloister")
    scp = run_scp(plain=False, tls=first.options(authority.file))
    theirs = authority.issue("peer")

    def served() -> bytes | None:
        wait_until(lambda: scp.scp.association_count < 10, "earlier connections end")
        with client(authority, theirs, scp.port) as connection:
            return connection.getpeercert(binary_form=True)

    before = served()
    shutil.copy(second.key, first.key)
    shutil.copy(second.certificate, first.certificate)
    wait_until(lambda: served() != before, "the new certificate is served")
    after = served()
    first.certificate.write_text("no certificate")
    wait_until(lambda: served() != after or scp.heard.failed, "the listener is told")
    assert isinstance(scp.heard.failed[0][1], TLSError)
    assert served() == after


def test_files_that_cannot_be_used_stop_the_start(
    run_scp: Callable[..., RunningSCP], authority: Authority, inbox: Any
) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(TLSError):
        run_scp(tls=TLSOptions(one.certificate, other.key, authority.file))
    assert run_scp(), "the inbox was let go"


@pytest.mark.dcmtk
@pytest.mark.parametrize("version", ["tls1", "tls1_1"])
def test_old_versions_are_refused(secured: RunningSCP, authority: Authority, version: str) -> None:
    assert b"Cipher is (NONE)" in _s_client(secured, authority, f"-{version}", "-cipher", "ALL:@SECLEVEL=0")


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    "cipher", ["AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384", "DHE-RSA-AES256-GCM-SHA384", "NULL"]
)
def test_suites_outside_the_profile_are_refused(
    secured: RunningSCP, authority: Authority, cipher: str
) -> None:
    chosen = ("-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert b"Cipher is (NONE)" in _s_client(secured, authority, *chosen)


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-tls1_2",), b"TLSv1.2, Cipher is ECDHE-RSA-AES256-GCM-SHA384"),
        (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"), b"Cipher is ECDHE-RSA-AES128-GCM-SHA256"),
        (("-tls1_3",), b"TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384"),
    ],
)
def test_the_profile_is_served_without_renegotiation_or_compression(
    secured: RunningSCP, authority: Authority, options: tuple[str, ...], says: bytes
) -> None:
    answer = _s_client(secured, authority, *options)
    assert says in answer
    assert b"Compression: NONE" in answer
    assert b"Verify return code: 0 (ok)" in answer
    if "-tls1_2" in options:
        assert b"Secure Renegotiation IS supported" in answer, "RFC 5746 is told, none is done"


def _s_client(scp: RunningSCP, authority: Authority, *options: str) -> bytes:
    theirs = authority.issue("peer")
    command = [
        program(DCMTK / "openssl"),
        *("s_client", "-connect", f"127.0.0.1:{scp.port}", "-CAfile", str(authority.file)),
        *("-cert", str(theirs.certificate), "-key", str(theirs.key), *options),
    ]
    return subprocess.run(command, input=b"", capture_output=True, check=False, timeout=20).stdout
