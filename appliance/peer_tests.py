"""Connection tests of one peer, in a child process: the web process carries no DICOM network library."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import node, secrets
from appliance.callers import NAME_UNRESOLVED, UNKNOWN_AE_TITLE, WRONG_ADDRESS
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer, RejectedCaller
from appliance.errors import ApplianceError
from appliance.names import as_network
from appliance.peer_values import DICOMWEB
from appliance.peers import NEEDS_TLS, WRONG_CERTIFICATE, get_peer, tls_options_of
from dicom_node.probing import Advice, Side, Step, StepFailedError, StepState, Trail, listens, reach
from dicom_node.scu import Destination
from dicom_node.tls import TLSOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from appliance.node import ClinicalZone

STEP_TIMEOUT_S: Final = 10.0
TEST_TIMEOUT_S: Final = 120.0
PEER_TESTED: Final = "peer.tested"
_AT_ONCE: Final = threading.BoundedSemaphore(4)
_LATELY: Final = timedelta(days=7)

# What results are made of, and what they may be made of (PS3.4 table B.5-1).
RESULT_CLASSES: Final = (
    ("Enhanced SR", "1.2.840.10008.5.1.4.1.1.88.22"),
    ("Comprehensive SR", "1.2.840.10008.5.1.4.1.1.88.33"),
    ("Comprehensive 3D SR", "1.2.840.10008.5.1.4.1.1.88.34"),
    ("Secondary Capture", "1.2.840.10008.5.1.4.1.1.7"),
    ("Segmentation", "1.2.840.10008.5.1.4.1.1.66.4"),
    ("Presentation State", "1.2.840.10008.5.1.4.1.1.11.1"),
)
COMMITMENT_CLASSES: Final = (("Storage Commitment", "1.2.840.10008.1.20.1"),)
TITLES: Final[Mapping[str, str]] = {
    "name": "Name resolution",
    "connection": "TCP connection",
    "tls": "TLS handshake",
    "association": "Association for C-ECHO",
    "echo": "C-ECHO",
    "offer": "Association to store",
    "results": "Storage of results",
    "commitment": "Storage Commitment",
    "store": "C-STORE of a test instance",
    "query offer": "Association to query",
    "query": "C-FIND",
    "retrieve offer": "Association to retrieve",
    "retrieve": "C-MOVE to this node",
    "qido": "QIDO-RS",
    "stow": "STOW-RS",
    "secret": "Secret",
    "port": "Our own port",
    "calls": "Its calls",
    "test": "The test itself",
}


class PeerTestError(ApplianceError):
    """The test cannot be made; the message says why."""


@dataclass(frozen=True)
class PeerReport:
    """What a test of one peer saw."""

    peer_id: str
    ok: bool
    at: datetime
    steps: tuple[Step, ...]

    @property
    def summary(self) -> str:
        """One line: all well, or the first step that failed."""
        failed = [step for step in self.steps if step.state is StepState.FAILED]
        if not failed:
            warned = sum(step.state is StepState.WARNING for step in self.steps)
            return f"all {len(self.steps)} steps went well" + (f", {warned} with advice" if warned else "")
        return f"{TITLES.get(failed[0].name, failed[0].name)}: {failed[0].seen}"


def steps_as_rows(report: PeerReport) -> list[dict[str, Any]]:
    """Return the steps with their titles, as JSON takes them."""
    return [{"title": TITLES.get(step.name, step.name), **asdict(step)} for step in report.steps]


def examine(
    zone: ClinicalZone,
    name: str,
    *,
    store: bool = False,
    actor: str = "node",
    step_timeout_s: float = STEP_TIMEOUT_S,
) -> PeerReport:
    """Test every way in which a peer and this node are to talk. Blocks for two minutes at most.

    Parameters
    ----------
    name : str
        Of the peer.
    store : bool
        Whether a destination gets a real instance, marked as a test; otherwise storing is negotiated alone.
    actor : str
        Who asks; the ledger records it.
    step_timeout_s : float
        The longest wait in one step.

    Raises
    ------
    PeerError
        If there is no such peer.
    PeerTestError
        If as many tests as may run at once are running.
    """
    with reading(zone.engine) as session:
        peer = get_peer(session, name)
    if not _AT_ONCE.acquire(blocking=False):
        raise PeerTestError("four tests are running already; try again when they are done")
    try:
        steps = _outgoing(zone, peer, store=store, step_timeout_s=step_timeout_s)
    finally:
        _AT_ONCE.release()
    if peer.may_send or peer.may_query:
        steps += _incoming(zone, peer)
    ok = all(step.state is not StepState.FAILED for step in steps)
    with writing(zone.engine) as session:
        body = {"ok": ok, "stored": store, "steps": len(steps)}
        zone.ledger.append(session, kind=PEER_TESTED, subject_id=peer.id, body=body, actor=actor)
    return PeerReport(peer.id, ok, now(), tuple(steps))


def _outgoing(zone: ClinicalZone, peer: Peer, *, store: bool, step_timeout_s: float) -> list[Step]:
    """Run the steps in which we call the peer, in the child."""
    if not (peer.is_destination or peer.is_archive):
        return []
    try:
        order = _order(zone, peer, store=store, step_timeout_s=step_timeout_s)
    except secrets.SecretError as error:
        advice = Advice(Side.HERE, f"cloister peer secret {peer.credential}")
        return [Step("secret", StepState.FAILED, str(error), (advice,))]
    argv = [sys.executable, "-m", __name__]
    try:
        ended = subprocess.run(
            argv, input=json.dumps(order).encode(), capture_output=True, timeout=TEST_TIMEOUT_S, check=True
        )
        return [_step(row) for row in json.loads(ended.stdout)]
    except subprocess.TimeoutExpired:
        seen = f"it took longer than {TEST_TIMEOUT_S:.0f} s and was ended"
    except (subprocess.SubprocessError, ValueError, KeyError):
        seen = "it broke off"
    return [Step("test", StepState.FAILED, seen, (Advice(Side.HERE, "look at the node's log"),))]


def _order(zone: ClinicalZone, peer: Peer, *, store: bool, step_timeout_s: float) -> dict[str, Any]:
    options = tls_options_of(peer, zone.settings.dicom)
    values = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()
    }
    return {
        "protocol": peer.protocol,
        "url": peer.url,
        "secret": secrets.read(zone, peer.credential) if peer.credential else "",
        "ae_title": peer.ae_title,
        "host": peer.host,
        "port": peer.port,
        "tls": values if peer.tls or peer.url.startswith("https://") else None,
        "calling": zone.settings.dicom.ae_title,
        "our_port": our_port(zone),
        "is_destination": peer.is_destination,
        "is_archive": peer.is_archive,
        "commitment": peer.commitment,
        "store": store and peer.is_destination,
        "timeout_s": step_timeout_s,
    }


def our_port(zone: ClinicalZone) -> int:
    """Return the port on which we receive; 0 when it is not known."""
    dicom = zone.settings.dicom
    fixed = dicom.port if dicom.plain else dicom.tls_port
    if fixed:
        return fixed
    try:
        return node.bound_port(zone.settings, "scp", wait_s=0)
    except node.NodeError:
        return 0


def _incoming(zone: ClinicalZone, peer: Peer) -> list[Step]:
    """Say whether it has called us, and why it was turned away."""
    steps = [_own_port(zone)]
    with reading(zone.engine) as session:
        callers = session.scalars(
            select(RejectedCaller)
            .where(RejectedCaller.last_seen_at >= now() - _LATELY)
            .order_by(RejectedCaller.last_seen_at.desc())
        ).all()
    turned_away = next((caller for caller in callers if _is_from(caller, peer)), None)
    if turned_away is not None and not _seen_since(peer, turned_away.last_seen_at):
        seen = f"turned away last on {turned_away.last_seen_at:%Y-%m-%d %H:%M} UTC: {turned_away.reason}"
        advice = _caller_advice(turned_away, peer, zone.settings.dicom.ae_title)
        steps.append(Step("calls", StepState.FAILED, seen, advice))
    elif peer.last_seen_at is None:
        dicom = zone.settings.dicom
        ours = f"AE title {dicom.ae_title}, this node's address, port {our_port(zone) or 'unknown'}"
        advice_ = (Advice(Side.PEER, f"add this node as a destination ({ours}) and let it send or echo"),)
        steps.append(Step("calls", StepState.WARNING, "it has never called this node", advice_))
    else:
        seen = f"called last on {peer.last_seen_at:%Y-%m-%d %H:%M} UTC"
        steps.append(Step("calls", StepState.OK, seen))
    return steps


def _own_port(zone: ClinicalZone) -> Step:
    dicom, port = zone.settings.dicom, our_port(zone)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(dicom.host, dicom.host)  # noqa: S104 - compared alone
    if port and listens(host, port, timeout_s=2):
        seen = f"{dicom.ae_title} listens on {dicom.host} port {port}"
        if as_network(host) is not None and host in {"127.0.0.1", "::1"} and dicom.host == host:
            advice = Advice(Side.HERE, 'other machines cannot reach it: set dicom.host to "0.0.0.0"')
            return Step("port", StepState.WARNING, seen, (advice,))
        return Step("port", StepState.OK, seen)
    advice = Advice(Side.HERE, "start the node: cloister up; then cloister doctor")
    return Step("port", StepState.FAILED, "nothing listens on our own port", (advice,))


def _is_from(caller: RejectedCaller, peer: Peer) -> bool:
    network = as_network(peer.host)
    address = as_network(caller.address)
    same_place = network is not None and address is not None and _inside(address, network)
    return (bool(peer.ae_title) and caller.calling_ae_title == peer.ae_title) or same_place


def _inside(address: Any, network: Any) -> bool:
    return bool(address.version == network.version and address.subnet_of(network))


def _seen_since(peer: Peer, at: datetime) -> bool:
    return peer.last_seen_at is not None and peer.last_seen_at > at


def _caller_advice(caller: RejectedCaller, peer: Peer, ours: str) -> tuple[Advice, ...]:
    here, there = Side.HERE, Side.PEER
    title, address = caller.calling_ae_title, caller.address
    known: dict[str, tuple[Advice, ...]] = {
        UNKNOWN_AE_TITLE: (
            Advice(here, f"it calls as {title} from {address}: allow it, or correct this peer's AE title"),
            Advice(there, f"or let it call as {peer.ae_title}"),
        ),
        WRONG_ADDRESS: (Advice(here, f"it calls from {address}: correct the host, or allow the caller"),),
        NAME_UNRESOLVED: (Advice(Side.NETWORK, f"let the name server (DNS) know {peer.host}"),),
        NEEDS_TLS: (
            Advice(there, "switch TLS on for its connection to this node, and use our TLS port"),
            Advice(here, "or take the mark TLS from this peer"),
        ),
        WRONG_CERTIFICATE: (
            Advice(here, "if its certificate was renewed, allow the caller: that takes the new one"),
            Advice(there, "otherwise let it show the certificate that is entered at this peer"),
        ),
        "wrong_called_ae_title": (Advice(there, f"let it call {ours}, not {caller.called_ae_title}"),),
        "tls_failed": (
            Advice(there, "let it trust our certificate, and show one of an authority that we trust"),
            Advice(here, "or add its authority to the file dicom.tls_ca"),
        ),
    }
    return known.get(caller.reason, (Advice(here, "see the callers turned away"),))


def run_steps(order: Mapping[str, Any]) -> Sequence[Step]:
    """Go the steps of an order, each way until its first failure."""
    trail = Trail()
    tls = None if order["tls"] is None else _options(order["tls"])
    with tempfile.TemporaryDirectory(prefix="cloister-test-") as folder:
        try:
            if order["protocol"] == DICOMWEB:
                _web(trail, order, tls, Path(folder))
            else:
                _dimse(trail, order, tls, Path(folder))
        except StepFailedError:
            pass  # it is the last step of the trail
    return trail.steps


def _options(values: Mapping[str, Any]) -> TLSOptions:
    paths = {name: Path(values[name]) for name in ("certificate", "key", "ca") if values[name]}
    return replace(TLSOptions(), **{**values, "certificate": None, "key": None, "ca": None, **paths})


def _dimse(trail: Trail, order: Mapping[str, Any], tls: TLSOptions | None, folder: Path) -> None:
    from dicom_node import dimse_probing  # noqa: PLC0415 - the child alone

    destination = Destination(order["ae_title"], order["host"], order["port"], order["timeout_s"], tls)
    calling = order["calling"]
    reach(trail, destination)
    dimse_probing.echo(trail, destination, calling)
    ways = []
    if order["is_destination"]:
        wanted: dict[str, Sequence[tuple[str, str]]] = {"results": RESULT_CLASSES}
        if order["commitment"]:
            wanted["commitment"] = COMMITMENT_CLASSES
        ways.append(lambda: dimse_probing.negotiate(trail, destination, calling, wanted))
    if order["store"]:
        ways.append(lambda: dimse_probing.store(trail, destination, calling, folder))
    if order["is_archive"]:
        ways.append(lambda: dimse_probing.find(trail, destination, calling))
        ways.append(lambda: dimse_probing.move(trail, destination, calling, order["our_port"]))
    _each(ways)


def _web(trail: Trail, order: Mapping[str, Any], tls: TLSOptions | None, folder: Path) -> None:
    from dicom_node import web_probing  # noqa: PLC0415 - the child alone
    from dicom_node.dicomweb.http import WebDestination  # noqa: PLC0415 - as above

    destination = WebDestination(order["url"], order["secret"], tls, order["timeout_s"])
    reach(trail, web_probing.transport_of(destination))
    ways = [lambda: web_probing.query(trail, destination)]
    if order["is_destination"]:
        ways.append(lambda: web_probing.offer(trail, destination))
    if order["store"]:
        ways.append(lambda: web_probing.store(trail, destination, folder))
    _each(ways)


def _each(ways: Sequence[Any]) -> None:
    """Go every way although an earlier one failed: that C-FIND is refused says nothing about C-STORE."""
    for way in ways:
        try:
            way()
        except StepFailedError:
            continue


def _step(row: Mapping[str, Any]) -> Step:
    advice = tuple(Advice(Side(item["side"]), item["text"]) for item in row["advice"])
    return Step(row["name"], StepState(row["state"]), row["seen"], advice, row["took_s"])


def _main() -> None:
    steps = run_steps(json.load(sys.stdin))
    sys.stdout.write(json.dumps([asdict(step) for step in steps]))


if __name__ == "__main__":
    _main()
