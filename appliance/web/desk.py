"""What pages and routes work with: the clinical zone, the way to the research zone, the person who asks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from appliance import auth, health, node
from appliance.auth import Principal, tokens
from appliance.db.base import now
from appliance.traffic import Meter
from appliance.web.peer_reports import LastReports
from appliance.web.sockets import OpenSockets

if TYPE_CHECKING:
    from appliance.research_client import ResearchClient
    from appliance.settings import Settings

Viewer = Principal
HEALTH_FOR_S: Final = 2.0


@dataclass(frozen=True)
class Visit:
    """A request or socket of a signed-in browser, or a request of a program that brings a bearer token.

    The token is asked again at every event.
    """

    viewer: Viewer
    token: str = field(repr=False)
    session: str = ""  # names the session in this process; says nothing of the token; none of a program
    bearer: str = ""  # name of the program's token


@dataclass
class _Looked:
    lock: threading.Lock = field(default_factory=threading.Lock)
    at: float = float("-inf")
    health: health.Health | None = None


@dataclass(frozen=True)
class Desk:
    """The panel's view of the node. All its functions block: call them off the event loop."""

    settings: Settings
    zone: node.ClinicalZone
    research: ResearchClient
    sockets: OpenSockets = field(default_factory=OpenSockets)
    peer_reports: LastReports = field(default_factory=LastReports, repr=False)
    meter: Meter = field(init=False, repr=False)
    _looked: _Looked = field(default_factory=_Looked, repr=False)

    def __post_init__(self) -> None:
        """Count what comes and goes by the web."""
        object.__setattr__(self, "meter", Meter(self.zone.engine))

    def who(self, token: str | None) -> Viewer | None:
        """Return who holds this session cookie now."""
        return auth.resolve(self.zone.engine, token, now())

    def bearer(self, token: str) -> tokens.Bearer | None:
        """Return who this bearer token acts for now."""
        return tokens.resolve(self.zone.engine, token, now())

    def asks(self, visit: Visit) -> Viewer | None:
        """Return who is behind a visit now."""
        if not visit.bearer:
            return self.who(visit.token)
        found = self.bearer(visit.token)
        return None if found is None else found.principal

    def health(self) -> health.Health:
        """Return the node's health, looked at most every two seconds however many pages are open."""
        with self._looked.lock:
            if self._looked.health is None or time.monotonic() - self._looked.at > HEALTH_FOR_S:
                self._looked.health = health.overall(self.settings)
                self._looked.at = time.monotonic()
            return self._looked.health

    def dicom_port(self) -> int:
        """Return the port on which studies are received."""
        if self.settings.dicom.port:
            return self.settings.dicom.port
        try:
            return node.bound_port(self.settings, "scp", wait_s=0)
        except node.NodeError:
            return 0

    @property
    def secure(self) -> bool:
        """Whether browsers reach the panel over TLS."""
        web = self.settings.web
        return web.tls_certificate is not None or web.public_url.startswith("https://")

    @property
    def cookie_name(self) -> str:
        """Name of the session cookie; ``__Host-`` binds it to this very host over TLS."""
        return "__Host-cloister" if self.secure else "cloister"
