"""Our SCU over TLS, against DCMTK's storescp."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dicom_node import scu, tls
from dicom_node.scu import Destination
from dicom_node.tls import TLSError, TLSOptions
from tests.dicom_node.authority import Authority, Issued
from tests.dicom_node.support import DCMTK, ct, free_port, kill_group, program, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def storescp(folder: Path, shown: Issued, *options: str | Path) -> Iterator[int]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    child = subprocess.Popen(
        [
            program(DCMTK / "storescp"),
            *("+tls", str(shown.key), str(shown.certificate)),
            *map(str, options),
            *("-od", str(folder), str(port)),
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield port
    finally:
        kill_group(child)


def wait_for_port(port: int) -> None:
    """Wait until something listens, without a connection."""
    wait_until(lambda: f":{port:04X} " in _listening(), f"port {port} is open")


def _listening() -> str:
    """Return the kernel's table: a connection that sends nothing would hold storescp in its handshake."""
    tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    lines = [line for table in tables for line in table.read_text(encoding="ascii").splitlines()]
    return "\n".join(line for line in lines if " 0A " in line)


def at(port: int, options: TLSOptions) -> Destination:
    return Destination("WORKSTATION", "127.0.0.1", port, timeout_s=5, tls=options)


@pytest.mark.dcmtk
def test_an_instance_of_any_size_reaches_storescp_over_tls(tmp_path: Path, authority: Authority) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("pacs")
    paths = [save(ct(size=size), tmp_path / f"{size}.dcm") for size in (16, 512, 2048)]
    with storescp(tmp_path / "in", theirs, "+cf", authority.file) as port:
        outcomes = scu.store(paths, at(port, ours.options(authority.file)), "CLOISTER")
    assert [outcome.status for outcome in outcomes] == [0, 0, 0]
    stored = sorted(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert [size > 2 * edge**2 for size, edge in zip(stored, (16, 512, 2048), strict=True)] == [True] * 3


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("days", "host", "by_itself", "says"),
    [
        ((-30, -1), "127.0.0.1", False, "expired"),
        ((1, 30), "127.0.0.1", False, "not valid yet"),
        ((-1, 30), "127.0.0.9", False, "another address"),
        ((-1, 30), "127.0.0.1", True, "signed by itself"),
    ],
)
def test_a_server_certificate_that_is_wrong_is_refused_and_named(
    tmp_path: Path, authority: Authority, days: tuple[int, int], host: str, by_itself: bool, says: str
) -> None:
    theirs = authority.issue("pacs", days=days, host=host, signed_by_itself=by_itself)
    with storescp(tmp_path / "in", theirs, "-ic") as port:
        outcome = scu.echo(at(port, TLSOptions(ca=authority.file)), "CLOISTER")
    assert not outcome.ok
    assert says in outcome.reason


@pytest.mark.dcmtk
def test_a_server_of_a_foreign_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    theirs = Authority(authority.folder, "Other CA").issue("pacs")
    with storescp(tmp_path / "in", theirs, "-ic") as port:
        outcome = scu.echo(at(port, TLSOptions(ca=authority.file)), "CLOISTER")
    assert not outcome.ok
    assert "authority that is not trusted" in outcome.reason


@pytest.mark.dcmtk
def test_a_pinned_certificate_stands_for_itself_and_any_other_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    theirs = authority.issue("pacs", signed_by_itself=True, host="elsewhere")
    with storescp(tmp_path / "in", theirs, "-ic") as port:
        right = scu.echo(at(port, TLSOptions(sha256=theirs.sha256)), "CLOISTER")
        wrong = scu.echo(at(port, TLSOptions(sha256="0" * 64)), "CLOISTER")
    assert right.ok
    assert not wrong.ok
    assert "another certificate" in wrong.reason


@pytest.mark.dcmtk
def test_a_server_that_wants_our_certificate_says_so(tmp_path: Path, authority: Authority) -> None:
    theirs = authority.issue("pacs")
    with storescp(tmp_path / "in", theirs, "-rc", "+cf", authority.file) as port:
        outcome = scu.echo(at(port, TLSOptions(ca=authority.file)), "CLOISTER")
    assert not outcome.ok
    assert "certificate" in outcome.reason


def test_a_destination_with_tls_is_never_spoken_to_without(tmp_path: Path, authority: Authority) -> None:
    del tmp_path
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        options = TLSOptions(ca=authority.file)
        said: list[bytes] = []

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                said.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = scu.echo(at(server.getsockname()[1], options), "CLOISTER")
        thread.join(10)
    assert "does not speak TLS" in outcome.reason
    assert said[0][0] == 0x16, "a TLS handshake record"


def test_contexts_allow_the_profile_alone(authority: Authority) -> None:
    context = tls.server_context(authority.issue("cloister").options(authority.file))
    old = [suite["name"] for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]
    assert sorted(old) == [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    mixed = TLSOptions(certificate=one.certificate, key=other.key, client_certificates="none")
    with pytest.raises(TLSError, match="do not belong together"):
        tls.server_context(mixed)
    with pytest.raises(TLSError, match="authorities"):
        tls.server_context(one.options())
    with pytest.raises(TLSError, match="authorities cannot be read"):
        tls.client_context(TLSOptions(ca=tmp_path / "nothing.pem"))


def test_a_fingerprint_is_read_however_it_was_written_down() -> None:
    plain = "0123456789abcdef" * 4
    colons = ":".join(plain.upper()[at : at + 2] for at in range(0, 64, 2))
    assert tls.plain_fingerprint(colons) == plain
    assert tls.plain_fingerprint(f"sha256 Fingerprint={colons}") == plain
    with pytest.raises(ValueError, match="64 hexadecimal"):
        tls.plain_fingerprint("0123")
