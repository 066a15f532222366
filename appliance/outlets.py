"""How a result goes out: over C-STORE or STOW-RS, in the transfer syntax that its destination wants."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance import archives, peers
from appliance.errors import ApplianceError
from appliance.peer_values import DICOMWEB
from dicom_node import scu
from dicom_node.errors import HeaderError
from dicom_node.index import read_header
from dicom_node.throttle import Throttle
from dicom_node.transcoding import COMPRESSED_TARGETS, TranscodingError, transcode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.db.peers import Peer
    from appliance.node import ClinicalZone
    from appliance.work import Claim
    from dicom_node.scu import StoreOutcome

TIMEOUT_S: Final = 30.0
BEAT_EVERY_S: Final = 20.0
FOLDER: Final = "sending"


@dataclass(frozen=True)
class Sent:
    """What became of it; ``away`` says that the destination itself was, whatever is sent."""

    ok: bool
    retryable: bool
    away: bool
    status: int | None
    reason: str


def pace(peer: Peer, claim: Claim) -> Callable[[int], None]:
    """Return what bounds the speed to a destination, and keeps the work ours however slow that is."""
    beaten = time.monotonic()

    def beat() -> None:
        nonlocal beaten
        if time.monotonic() - beaten >= BEAT_EVERY_S:
            claim.heartbeat()
            beaten = time.monotonic()

    throttle = Throttle(peer.max_kib_per_s, while_waiting=beat)

    def take(count: int) -> None:
        beat()
        throttle.take(count)

    return take


def send(zone: ClinicalZone, peer: Peer, path: Path, name: str, on_bytes: Callable[[int], None]) -> Sent:
    """Send one file to one destination.

    Parameters
    ----------
    zone : ClinicalZone
    peer : Peer
    path : Path
    name : str
        Of the converted file meanwhile, where one is made; no other work has the same.
    on_bytes : callable
        Told before so many bytes leave; see :func:`pace`.
    """
    converted = zone.root / FOLDER / f"{name}.dcm"
    try:
        outgoing = _converted(path, converted, peer.transfer_syntax_uid)
        return _sent(_store(zone, peer, outgoing, on_bytes))
    except (TranscodingError, HeaderError) as error:
        reason = f"cannot be written in the destination's transfer syntax: {error}"
        return Sent(ok=False, retryable=False, away=False, status=None, reason=reason)
    except ApplianceError as error:  # a secret that is not there
        return Sent(ok=False, retryable=True, away=False, status=None, reason=str(error))
    finally:
        converted.unlink(missing_ok=True)


def _converted(path: Path, target: Path, wanted: str) -> Path:
    """Return the file as it is to be sent; what has no picture is not compressed (PS3.5 A.4)."""
    if not wanted:
        return path
    header = read_header(path)
    if header.transfer_syntax_uid == wanted or (wanted in COMPRESSED_TARGETS and header.rows is None):
        return path
    target.parent.mkdir(mode=0o700, exist_ok=True)
    transcode(path, target, wanted)
    return target


def _store(zone: ClinicalZone, peer: Peer, path: Path, on_bytes: Callable[[int], None]) -> StoreOutcome:
    if peer.protocol == DICOMWEB:
        from dicom_node.dicomweb import stow_client  # noqa: PLC0415 - DIMSE needs no HTTP

        return stow_client.store(path, archives.web_destination(zone, peer), on_bytes)
    destination = peers.destination_of(peer, zone.settings.dicom, TIMEOUT_S)
    (outcome,) = scu.store([path], destination, zone.settings.dicom.ae_title, on_bytes)
    return outcome


def _sent(outcome: StoreOutcome) -> Sent:
    busy = outcome.status is None or 0xA700 <= outcome.status <= 0xA7FF or outcome.status in {429, 503}
    return Sent(
        ok=outcome.ok,
        retryable=outcome.retryable,
        away=not outcome.ok and outcome.retryable and busy,
        status=outcome.status,
        reason=outcome.reason,
    )
