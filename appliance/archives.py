"""Archives that studies are pulled from, each in the protocol that its peer speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from appliance import peers, secrets
from appliance.errors import ApplianceError
from appliance.filing import open_inbox
from appliance.peer_values import DICOMWEB, DIMSE
from dicom_node.arriving import Arrivals
from dicom_node.ports import Caller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.db.peers import Peer
    from appliance.node import ClinicalZone
    from dicom_node.archive import Answers, Listed, Retrieval, Watch
    from dicom_node.dicomweb.http import WebDestination
    from dicom_node.query import Query
    from dicom_node.scu import Destination

MOVE: Final = "move"
GET: Final = "get"
WEB: Final = "web"
METHODS: Final = (MOVE, GET, WEB)
WRITER: Final = "fetch"
TIMEOUT_S: Final = 30.0
QUERY_SILENCE_S: Final = 60.0


class FetchError(ApplianceError):
    """Something that cannot be fetched as asked; the message says why."""


class Archive(Protocol):
    """A system that has studies. Each function raises :class:`dicom_node.archive.ArchiveError`."""

    def find(self, query: Query) -> Answers:
        """Ask what it has."""

    def inventory(self, study_uid: str) -> tuple[Listed, ...]:
        """Return the instances of a study."""

    def retrieve(
        self, study_uid: str, series_uid: str, sop_classes: Sequence[str], watch: Watch
    ) -> Retrieval:
        """Have a study, or one series of it, sent here."""


@dataclass(frozen=True)
class DIMSEArchive:
    """C-FIND, and C-MOVE or C-GET.

    Parameters
    ----------
    zone : ClinicalZone
    destination : Destination
    method : str
    max_kib_per_s : int
        Of a C-GET; what a C-MOVE sends us is beyond our reach.
    """

    zone: ClinicalZone
    destination: Destination
    method: str
    max_kib_per_s: int

    def find(self, query: Query) -> Answers:
        """Ask what it has; raises ArchiveError."""
        from dicom_node import query_scu  # noqa: PLC0415 - other processes need no network library

        return query_scu.find(self.destination, self._ours, query, silence_s=QUERY_SILENCE_S)

    def inventory(self, study_uid: str) -> tuple[Listed, ...]:
        """Return the instances of a study; raises ArchiveError."""
        from dicom_node import query_scu  # noqa: PLC0415 - as above

        return query_scu.inventory(self.destination, self._ours, study_uid, silence_s=QUERY_SILENCE_S)

    def retrieve(
        self, study_uid: str, series_uid: str, sop_classes: Sequence[str], watch: Watch
    ) -> Retrieval:
        """Have a study, or one series of it, sent here; raises ArchiveError."""
        from dicom_node import retrieve_scu  # noqa: PLC0415 - as above

        keys = {"StudyInstanceUID": study_uid}
        if series_uid:
            keys["SeriesInstanceUID"] = series_uid
        silence_s = self.zone.settings.fetch.silence_s
        if self.method == MOVE:
            return retrieve_scu.move(self.destination, self._ours, keys, watch, silence_s=silence_s)
        inbox = open_inbox(self.zone, WRITER)
        inbox.recover()
        try:
            caller = Caller(
                self.destination.ae_title, self._ours, self.destination.host, tls=bool(self.destination.tls)
            )
            return retrieve_scu.get(
                self.destination,
                self._ours,
                keys,
                watch,
                Arrivals(inbox, caller, study_uid, self.max_kib_per_s),
                sop_classes=sop_classes,
                silence_s=silence_s,
            )
        finally:
            inbox.release()

    @property
    def _ours(self) -> str:
        return self.zone.settings.dicom.ae_title


@dataclass(frozen=True)
class WebArchive:
    """QIDO-RS and WADO-RS.

    Parameters
    ----------
    zone : ClinicalZone
    destination : WebDestination
    caller : Caller
        The archive, as it stands in what it sends.
    max_kib_per_s : int
    """

    zone: ClinicalZone
    destination: WebDestination
    caller: Caller
    max_kib_per_s: int

    def find(self, query: Query) -> Answers:
        """Ask what it has; raises ArchiveError."""
        from dicom_node.dicomweb import retrieve_client  # noqa: PLC0415 - as above

        return retrieve_client.find(self.destination, query)

    def inventory(self, study_uid: str) -> tuple[Listed, ...]:
        """Return the instances of a study; raises ArchiveError."""
        from dicom_node.dicomweb import retrieve_client  # noqa: PLC0415 - as above

        return retrieve_client.inventory(self.destination, study_uid)

    def retrieve(
        self, study_uid: str, series_uid: str, sop_classes: Sequence[str], watch: Watch
    ) -> Retrieval:
        """Have a study, or one series of it, sent here; raises ArchiveError."""
        from dicom_node.dicomweb import retrieve_client  # noqa: PLC0415 - as above

        del sop_classes
        inbox = open_inbox(self.zone, WRITER)
        inbox.recover()
        try:
            return retrieve_client.retrieve(
                self.destination,
                study_uid,
                series_uid,
                watch,
                inbox,
                self.caller,
                silence_s=self.zone.settings.fetch.silence_s,
                max_kib_per_s=self.max_kib_per_s,
            )
        finally:
            inbox.release()


def open_archive(zone: ClinicalZone, peer: Peer, method: str) -> Archive:
    """Return a peer as an archive.

    Raises
    ------
    FetchError
        If it is none, or not by this method.
    """
    check(peer, method)
    if method == WEB:
        return WebArchive(zone, web_destination(zone, peer), _caller(zone, peer), peer.max_kib_per_s)
    destination = peers.destination_of(peer, zone.settings.dicom, TIMEOUT_S)
    return DIMSEArchive(zone, destination, method, peer.max_kib_per_s)


def check(peer: Peer, method: str) -> None:
    """Refuse a peer that cannot be fetched from in this way; raises :class:`FetchError`."""
    if not (peer.enabled and peer.is_archive):
        raise FetchError("peer: expected an enabled one that may be queried and fetched from")
    possible = {DIMSE: (MOVE, GET), DICOMWEB: (WEB,)}.get(peer.protocol, ())
    if method not in possible:
        raise FetchError(f"method: expected one of {', '.join(possible)} for this peer")
    if method == MOVE and not peer.may_send:
        raise FetchError("method: by C-MOVE the archive sends to us; allow this peer to send, or use get")


def methods_of(peer: Peer) -> tuple[str, ...]:
    """Return how a peer can be fetched from, the best first."""
    if peer.protocol == DICOMWEB:
        return (WEB,)
    return (MOVE, GET) if peer.may_send else (GET,)


def web_destination(zone: ClinicalZone, peer: Peer) -> WebDestination:
    """Return a DICOMweb peer with its secret; raises :class:`FetchError` where that is not stored."""
    from dicom_node.dicomweb.http import WebDestination  # noqa: PLC0415 - as above

    try:
        secret = secrets.read(zone, peer.credential) if peer.credential else ""
    except secrets.SecretError as error:
        raise FetchError(str(error)) from error
    options = peers.tls_options_of(peer, zone.settings.dicom)
    return WebDestination(url=peer.url, secret=secret, tls=options, timeout_s=TIMEOUT_S)


def _caller(zone: ClinicalZone, peer: Peer) -> Caller:
    """Return who stands as the sender of what comes over the web: the AE title, else the peer's name."""
    title = peer.ae_title or peer.name[:16]
    return Caller(title, zone.settings.dicom.ae_title, peer.host, tls=peer.url.startswith("https://"))
