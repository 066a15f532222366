"""Connection tests against real peers with the faults that hospitals have."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pynetdicom import AE, evt

from dicom_node import dimse_probing, web_probing
from dicom_node.dicomweb.http import WebDestination
from dicom_node.probing import Side, Step, StepFailedError, StepState, Trail, reach
from dicom_node.scu import Destination
from dicom_node.tls import TLSOptions
from tests.dicom_node.orthanc import Orthanc, running_orthanc
from tests.dicom_node.support import DCMTK, free_port, kill_group, program
from tests.dicom_node.test_tls import wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.dicom_node.authority import Authority, Issued

SR = [("Comprehensive SR", "1.2.840.10008.5.1.4.1.1.88.33")]
BOTH = [*SR, ("Secondary Capture", "1.2.840.10008.5.1.4.1.1.7")]
ALONE = """
[[TransferSyntaxes]]
[Uncompressed]
TransferSyntax1 = LittleEndianExplicit
[[PresentationContexts]]
[Captures]
PresentationContext1 = SecondaryCaptureImageStorage\\Uncompressed
[[Profiles]]
[Captures]
PresentationContexts = Captures
"""


def at(port: int, tls: TLSOptions | None = None, timeout_s: float = 2) -> Destination:
    return Destination("STORESCP", "127.0.0.1", port, timeout_s, tls)


@contextmanager
def dcmtk_server(port: int, *command: str | Path) -> Iterator[int]:
    argv = [program(DCMTK / str(command[0])), *map(str, command[1:])]
    null = subprocess.DEVNULL
    child = subprocess.Popen(argv, start_new_session=True, stdout=null, stderr=null)
    try:
        wait_for_port(port)
        yield port
    finally:
        kill_group(child)


@contextmanager
def storescp(tmp_path: Path, *options: str | Path) -> Iterator[int]:
    port = free_port()
    folder = tmp_path / "stored"
    folder.mkdir(exist_ok=True)
    with dcmtk_server(port, "storescp", *options, "-od", folder, str(port)):
        yield port


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server that does one thing with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with ExitStack() as kept:
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    kept.enter_context(connection)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def walked(way: Callable[[Trail], None]) -> list[Step]:
    trail = Trail()
    with suppress(StepFailedError):
        way(trail)
    return trail.steps


def failed(way: Callable[[Trail], None]) -> Step:
    last = walked(way)[-1]
    assert last.state is StepState.FAILED
    assert last.advice
    return last


def test_a_name_that_does_not_exist_is_the_first_step() -> None:
    step = failed(lambda trail: reach(trail, replace(at(104), host="no-such-host.invalid")))
    assert (step.name, "has no address" in step.seen) == ("name", True)


def test_a_closed_port_is_told_from_a_silent_network() -> None:
    step = failed(lambda trail: reach(trail, at(free_port())))
    assert (step.name, "nothing listens there" in step.seen) == ("connection", True)
    assert step.advice[0].side is Side.PEER


def test_an_address_that_swallows_everything_ends_with_the_time() -> None:
    """A listener whose queue is full drops what arrives, as a firewall does."""
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.settimeout(0)
            one.connect_ex(("127.0.0.1", port))
        started = time.monotonic()
        step = failed(lambda trail: reach(trail, at(port, timeout_s=1)))
    assert time.monotonic() - started < 3
    assert (step.name, "no answer" in step.seen) == ("connection", True)
    assert step.advice[0].side is Side.NETWORK


def test_a_server_that_says_nothing_is_recognised_in_time() -> None:
    with answering(lambda _: None) as port:
        started = time.monotonic()
        step = failed(lambda trail: dimse_probing.echo(trail, at(port, timeout_s=1), "CLOISTER"))
    assert (step.name, "says nothing" in step.seen) == ("association", True)
    assert time.monotonic() - started < 5


def test_a_server_that_hangs_up_is_recognised() -> None:
    with answering(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as port:
        step = failed(lambda trail: dimse_probing.echo(trail, at(port), "CLOISTER"))
    assert "closes the connection without an answer" in step.seen


def test_a_web_server_is_recognised() -> None:
    def http(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with answering(http) as port:
        step = failed(lambda trail: dimse_probing.echo(trail, at(port), "CLOISTER"))
    assert (step.name, "web server" in step.seen) == ("association", True)
    assert step.advice[0].side is Side.HERE


@pytest.mark.dcmtk
def test_storescp_answers_and_says_what_it_takes(tmp_path: Path) -> None:
    def way(trail: Trail) -> None:
        reach(trail, at(port))
        dimse_probing.echo(trail, at(port), "CLOISTER")
        dimse_probing.negotiate(trail, at(port), "CLOISTER", {"results": BOTH})
        dimse_probing.store(trail, at(port), "CLOISTER", tmp_path)

    with storescp(tmp_path) as port:
        steps = walked(way)
    assert [(step.name, step.state) for step in steps] == [
        (name, StepState.OK)
        for name in ("name", "connection", "association", "echo", "offer", "results", "store")
    ]
    (stored,) = (tmp_path / "stored").iterdir()
    dump = subprocess.run([DCMTK / "dcmdump", stored], capture_output=True, text=True, check=True).stdout
    assert "CONNECTION^TEST" in dump


@pytest.mark.dcmtk
def test_a_peer_that_refuses_every_association_says_so(tmp_path: Path) -> None:
    with storescp(tmp_path, "--refuse") as port:
        step = failed(lambda trail: dimse_probing.echo(trail, at(port), "CLOISTER"))
    assert (step.name, "rejected" in step.seen) == ("association", True)
    assert step.advice[0].side is Side.PEER


@pytest.mark.dcmtk
def test_a_peer_that_takes_some_results_is_told_what_else_to_allow(tmp_path: Path) -> None:
    profile = tmp_path / "profile.cfg"
    profile.write_text(ALONE)
    with storescp(tmp_path, "-xf", profile, "Captures") as port:
        some = walked(lambda trail: dimse_probing.negotiate(trail, at(port), "CLOISTER", {"results": BOTH}))[
            -1
        ]
        none = failed(lambda trail: dimse_probing.negotiate(trail, at(port), "CLOISTER", {"results": SR}))
        nothing = failed(lambda trail: dimse_probing.echo(trail, at(port), "CLOISTER"))
    assert some.state is StepState.WARNING
    assert some.seen == "takes Secondary Capture; refuses Comprehensive SR"
    assert (none.name, "not the service" in none.seen) == ("offer", True)
    assert (nothing.name, "not the service" in nothing.seen) == ("association", True)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[int]:
    """Run dcmqrscp that knows CLOISTER as a destination, and lets it alone in."""
    port, folder = free_port(), tmp_path / "archive"
    folder.mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(f"""
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
cloister = (CLOISTER, 127.0.0.1, {free_port()})
HostTable END
AETable BEGIN
ARCHIVE {folder} RW (200, 1024mb) ANY
AETable END
""")
    with dcmtk_server(port, "dcmqrscp", "-c", config):
        yield port


@pytest.mark.dcmtk
def test_an_archive_answers_query_and_retrieve(archive: int) -> None:
    destination = replace(at(archive), ae_title="ARCHIVE")

    def way(trail: Trail) -> None:
        dimse_probing.find(trail, destination, "CLOISTER")
        dimse_probing.move(trail, destination, "CLOISTER", 11112)

    steps = walked(way)
    assert [(step.name, step.state.value) for step in steps] == [
        ("query offer", "ok"),
        ("query", "ok"),
        ("retrieve offer", "ok"),
        ("retrieve", "ok"),
    ]


def test_an_archive_that_does_not_know_us_as_a_destination_says_so() -> None:
    with looking_up_destinations_first() as port:
        step = failed(lambda trail: dimse_probing.move(trail, at(port), "STRANGER", 11112))
        known = walked(lambda trail: dimse_probing.move(trail, at(port), "CLOISTER", 11112))[-1]
    assert (step.name, "0xA801" in step.seen) == ("retrieve", True)
    assert "add STRANGER" in step.advice[0].text
    assert known.state is StepState.OK


@contextmanager
def looking_up_destinations_first() -> Iterator[int]:
    """Run an archive that knows CLOISTER alone as a destination."""

    def on_move(event: Any) -> Iterator[Any]:
        if event.move_destination != "CLOISTER":
            yield None, None
            return
        yield "127.0.0.1", free_port()
        yield 0

    ae = AE(ae_title="STORESCP")
    ae.add_supported_context(dimse_probing.STUDY_ROOT_MOVE)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, on_move)])
    yield int(server.server_address[1])
    server.shutdown()


@pytest.mark.dcmtk
def test_a_wrong_called_ae_title_is_for_this_node_to_correct(archive: int) -> None:
    step = failed(lambda trail: dimse_probing.echo(trail, replace(at(archive), ae_title="OTHER"), "CLOISTER"))
    assert (step.name, "Called AE title not recognised" in step.seen) == ("association", True)
    assert step.advice[0].side is Side.HERE


@contextmanager
def storescp_tls(tmp_path: Path, shown: Issued, *options: str | Path) -> Iterator[int]:
    with storescp(tmp_path, "+tls", shown.key, shown.certificate, *options) as port:
        yield port


@pytest.mark.dcmtk
def test_a_tls_handshake_shows_version_suite_and_certificate(tmp_path: Path, authority: Authority) -> None:
    ours, theirs = authority.issue("cloister"), authority.issue("pacs", days=(-1, 10))
    with storescp_tls(tmp_path, theirs, "-rc", "+cf", authority.file) as port:
        steps = walked(lambda trail: reach(trail, at(port, ours.options(authority.file))))
    step = steps[-1]
    assert (step.name, step.state) == ("tls", StepState.WARNING)
    assert "TLSv1." in step.seen
    assert "CN=pacs" in step.seen
    assert "asks for our certificate" in step.seen
    assert "expires in" in step.advice[0].text


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("days", "host", "by_itself", "says", "side"),
    [
        ((-30, -1), "127.0.0.1", False, "expired", Side.PEER),
        ((-1, 30), "127.0.0.9", False, "another address", Side.HERE),
        ((-1, 30), "127.0.0.1", True, "signed by itself", Side.HERE),
    ],
)
def test_a_bad_certificate_is_shown_with_what_to_change(
    tmp_path: Path,
    authority: Authority,
    days: tuple[int, int],
    host: str,
    by_itself: bool,
    says: str,
    side: Side,
) -> None:
    theirs = authority.issue("pacs", days=days, host=host, signed_by_itself=by_itself)
    with storescp_tls(tmp_path, theirs, "-ic") as port:
        step = failed(lambda trail: reach(trail, at(port, TLSOptions(ca=authority.file))))
    assert (step.name, says in step.seen, step.advice[0].side) == ("tls", True, side)
    assert theirs.sha256 in step.seen, "to be pinned after a look"


@pytest.mark.dcmtk
def test_a_peer_that_wants_a_certificate_that_we_do_not_show(tmp_path: Path, authority: Authority) -> None:
    theirs = authority.issue("pacs")
    with storescp_tls(tmp_path, theirs, "-rc", "+cf", authority.file) as port:
        step = failed(lambda trail: reach(trail, at(port, TLSOptions(ca=authority.file))))
    assert (step.name, "certificate" in step.seen) == ("tls", True)
    assert "dicom.tls_certificate" in step.advice[-1].text


@pytest.mark.dcmtk
def test_tls_to_a_plain_port_and_plain_to_a_tls_port(tmp_path: Path, authority: Authority) -> None:
    with storescp(tmp_path) as port:
        step = failed(lambda trail: reach(trail, at(port, TLSOptions(ca=authority.file))))
    assert step.name == "tls"
    assert "TLS" in step.advice[0].text
    with storescp_tls(tmp_path, authority.issue("pacs"), "-ic") as port:
        step = failed(lambda trail: dimse_probing.echo(trail, at(port), "CLOISTER"))
    assert step.name == "association"
    assert "TLS" in " ".join(advice.text for advice in step.advice)


@contextmanager
def orthanc_with_dicomweb(folder: Path, **more: Any) -> Iterator[tuple[Orthanc, str]]:
    plugin = program(Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"))
    with running_orthanc(folder, Plugins=[plugin], **more) as orthanc:
        yield orthanc, f"http://127.0.0.1:{orthanc.http_port}/dicom-web"


@pytest.mark.orthanc
def test_orthanc_passes_every_step_over_dimse_and_dicomweb(tmp_path: Path) -> None:
    modalities = {"cloister": ["CLOISTER", "127.0.0.1", free_port()]}
    with orthanc_with_dicomweb(tmp_path / "orthanc", DicomModalities=modalities) as (orthanc, url):
        destination = Destination("ORTHANC", "127.0.0.1", orthanc.dicom_port, 5)
        web = WebDestination(url)

        def way(trail: Trail) -> None:
            dimse_probing.echo(trail, destination, "CLOISTER")
            dimse_probing.negotiate(trail, destination, "CLOISTER", {"results": BOTH})
            dimse_probing.find(trail, destination, "CLOISTER")
            dimse_probing.move(trail, destination, "CLOISTER", 11112)
            reach(trail, web_probing.transport_of(web))
            web_probing.query(trail, web)
            web_probing.offer(trail, web)
            assert orthanc.instances() == []
            web_probing.store(trail, web, tmp_path)

        steps = walked(way)
        assert [step.seen for step in steps if step.state is StepState.FAILED] == []
        assert [step.name for step in steps if step.state is StepState.WARNING] == ["retrieve"]
        assert [step.name for step in steps][-3:] == ["qido", "stow", "store"]
        assert len(orthanc.instances()) == 1
        wrong = failed(lambda trail: web_probing.query(trail, WebDestination(f"{url}/nothing")))
        assert "no such service" in wrong.seen


@pytest.mark.orthanc
def test_a_dicomweb_peer_that_wants_a_password_is_told_from_one_that_has_no_such_service(
    tmp_path: Path,
) -> None:
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"cloister": "secret"}}
    with orthanc_with_dicomweb(tmp_path / "orthanc", **users) as (_, url):
        without = failed(lambda trail: web_probing.query(trail, WebDestination(url)))
        wrong = failed(lambda trail: web_probing.query(trail, WebDestination(url, "cloister:guess")))
        right = walked(lambda trail: web_probing.query(trail, WebDestination(url, "cloister:secret")))[-1]
    assert "status 401" in without.seen
    assert "status 401" in wrong.seen
    assert wrong.advice[0].side is Side.HERE
    assert right.state is StepState.OK


def test_a_port_that_speaks_no_http_and_one_that_says_nothing_are_told_apart() -> None:
    with answering(lambda connection: connection.sendall(b"\x02\x00nonsense\r\n")) as port:
        step = failed(lambda trail: web_probing.query(trail, web_at(port)))
        assert "no HTTP answer" in step.seen
    with answering(lambda _: None) as port:
        started = time.monotonic()
        step = failed(lambda trail: web_probing.query(trail, web_at(port)))
    assert "no answer within" in step.seen
    assert time.monotonic() - started < 4


def web_at(port: int) -> WebDestination:
    return WebDestination(f"http://127.0.0.1:{port}/dicom-web", timeout_s=1)
