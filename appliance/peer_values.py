"""What a peer is, as staff describe it, and whether that can be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pydicom.uid import UID

from appliance import schedules, secrets
from appliance.errors import ApplianceError
from appliance.names import as_network
from dicom_node.tls import plain_fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.db.peers import Peer

DIMSE: Final = "dimse"
DICOMWEB: Final = "dicomweb"
PROTOCOLS: Final = (DIMSE, DICOMWEB)
MAX_WAIT_S: Final = 7 * 24 * 3600.0
_MAX_NUMBER: Final = 10_000_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1035 2.3.4
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


class PeerError(ApplianceError):
    """A peer that cannot be stored as asked; the message names the field."""


@dataclass(frozen=True)
class NewPeer:
    """All that staff say of a peer.

    ``host`` is, for a sender, an address, a network in CIDR form or a host name; for a peer that we call an
    address or a name. ``port`` is that of a peer that we call. A DICOMweb peer that neither sends nor queries
    over DICOM has ``url`` alone.
    """

    name: str
    ae_title: str = ""
    host: str = ""
    port: int = 0
    may_send: bool = False
    is_destination: bool = False
    may_query: bool = False
    is_archive: bool = False
    protocol: str = DIMSE
    url: str = ""
    credential: str = ""
    tls: bool = False
    certificate_sha256: str = ""
    max_associations: int = 0
    max_instances_per_minute: int = 0
    max_kib_per_s: int = 0
    quiet_period_s: float | None = None
    max_wait_s: float | None = None
    transfer_syntax_uid: str = ""
    commitment: bool = False
    schedule: Mapping[str, Any] = field(default_factory=dict)
    watch_silence: bool = True

    @property
    def calls_us(self) -> bool:
        """Whether it opens associations with us."""
        return self.may_send or self.may_query

    @property
    def is_called(self) -> bool:
        """Whether we call it."""
        return self.is_destination or self.is_archive


FIELDS: Final = tuple(item.name for item in fields(NewPeer))


def values_of(peer: Peer) -> NewPeer:
    """Return what a stored peer is."""
    return NewPeer(**{name: getattr(peer, name) for name in FIELDS})


def checked(new: NewPeer) -> NewPeer:
    """Return a peer in its plain form.

    Raises
    ------
    PeerError
        Naming the first field that is wrong.
    """
    texts = ("name", "ae_title", "host", "url", "credential", "certificate_sha256", "transfer_syntax_uid")
    new = replace(new, **{name: getattr(new, name).strip() for name in texts})
    if new.protocol == DICOMWEB and not new.host:
        new = replace(new, host=_url_host(new.url))
    _check_identity(new)
    _check_address(new)
    _check_web(new)
    _check_numbers(new)
    shown = _fingerprint(new)
    return replace(new, tls=new.tls or bool(shown), certificate_sha256=shown, schedule=_schedule(new))


def _check_identity(new: NewPeer) -> None:
    title = new.ae_title
    if not _NAME.fullmatch(new.name):
        raise PeerError("name: expected 1 to 64 letters, digits, blanks, dots, hyphens or underscores")
    if new.protocol not in PROTOCOLS:
        raise PeerError("protocol: expected dimse or dicomweb")
    if not (new.calls_us or new.is_called):
        raise PeerError("expected a peer that may send, may query, is a destination or is an archive")
    if not title and new.protocol == DICOMWEB and not new.calls_us:
        return
    if not 1 <= len(title) <= 16 or _UNPRINTABLE.search(title) or "\\" in title:
        raise PeerError("ae_title: expected 1 to 16 printable ASCII characters without a backslash")


def _check_address(new: NewPeer) -> None:
    if as_network(new.host) is None and not _HOST.fullmatch(new.host):
        raise PeerError("host: expected an address, a network in CIDR form, or a host name")
    if new.protocol == DICOMWEB or not new.is_called:
        if not 0 <= new.port <= 65535:
            raise PeerError("port: expected 1 to 65535, or none")
        return
    what = "a destination" if new.is_destination else "an archive"
    if "/" in new.host:
        raise PeerError(f"host: expected an address or a name for {what}, not a network")
    if not 1 <= new.port <= 65535:
        raise PeerError(f"port: expected 1 to 65535 for {what}")


def _check_web(new: NewPeer) -> None:
    if new.credential and not secrets.is_name(new.credential):
        raise PeerError("credential: expected the name of a secret: letters, digits, dots, hyphens")
    if new.protocol != DICOMWEB:
        if new.url:
            raise PeerError("url: expected none for a DIMSE peer; its protocol may be dicomweb")
        if new.credential:
            raise PeerError("credential: expected none for a DIMSE peer; its protocol may be dicomweb")
        return
    if not new.is_called:
        raise PeerError("protocol: dicomweb is for a destination or an archive")
    if not _url_host(new.url):
        raise PeerError("url: expected https://host/path, the base of its DICOMweb services")
    if new.commitment:
        raise PeerError("commitment: expected none for a DICOMweb peer; it is read back instead")
    if new.certificate_sha256 and not new.url.startswith("https://"):
        raise PeerError("certificate_sha256: expected a url with https to compare it with")


def _check_numbers(new: NewPeer) -> None:
    for name in ("max_associations", "max_instances_per_minute", "max_kib_per_s"):
        if not 0 <= getattr(new, name) <= _MAX_NUMBER:
            raise PeerError(f"{name}: expected 0 (no bound) to {_MAX_NUMBER}")
    for name in ("quiet_period_s", "max_wait_s"):
        value = getattr(new, name)
        if value is not None and not 0 < value <= MAX_WAIT_S:
            raise PeerError(f"{name}: expected seconds above 0, up to a week, or none")
    if None not in (new.quiet_period_s, new.max_wait_s) and new.max_wait_s < new.quiet_period_s:  # type: ignore[operator]
        raise PeerError("max_wait_s: expected no less than quiet_period_s")
    uid = UID(new.transfer_syntax_uid)
    if new.transfer_syntax_uid and not (uid.is_valid and uid.is_transfer_syntax):
        raise PeerError("transfer_syntax_uid: expected the UID of a transfer syntax, or none")


def _fingerprint(new: NewPeer) -> str:
    if not new.certificate_sha256:
        return ""
    try:
        return plain_fingerprint(new.certificate_sha256)
    except ValueError as error:
        raise PeerError(f"certificate_sha256: {error}") from error


def _schedule(new: NewPeer) -> dict[str, Any]:
    stored = dict(new.schedule)
    if set(stored) - {"days", "from", "to"}:
        raise PeerError("schedule: expected days, from and to")
    try:
        return schedules.make(stored.get("days", ()), stored.get("from", ""), stored.get("to", ""))
    except (TypeError, AttributeError, ValueError) as error:
        raise PeerError(f"schedule: {error}") from error


def _url_host(url: str) -> str:
    """Return the host of a URL that DICOMweb can be reached at; empty for any other text."""
    try:
        parts = urlsplit(url)
        good = (
            parts.scheme in {"http", "https"}
            and parts.port != 0
            and not (parts.username or parts.password or parts.query or parts.fragment)
        )
        host = parts.hostname or ""
    except ValueError:
        return ""
    printable = len(url) <= 255 and url.isascii() and url.isprintable() and " " not in url
    return host if good and printable else ""
