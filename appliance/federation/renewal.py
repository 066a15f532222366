"""A site's certificate renews by itself, when a third of its life is left; the research agent looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from appliance import logs
from appliance.db.base import now
from appliance.errors import ApplianceError
from appliance.federation import authority, joining, workspaces

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

LOOK_EVERY_S: Final = 600.0
RENEWED: Final = "federation.certificate_renewed"
NOT_RENEWED: Final = "federation.certificate_not_renewed"
EXPIRED: Final = "federation.certificate_expired"

_LOG = logs.logger(__name__)


@dataclass
class Renewal:
    """Keeps one site's certificate good.

    Parameters
    ----------
    workspace : Path or None
        The engine's folder; None before this site has joined.
    zone_root : Path
        Root of the research zone, whose signing key vouches for the request.
    """

    workspace: Path | None
    zone_root: Path
    ends_at: datetime | None = None

    def look(self) -> None:
        """Renew when it is due; a coordinator that is away is asked again at the next look."""
        if self.workspace is None:
            return
        try:
            made = x509.load_pem_x509_certificate(workspaces.read(self.workspace).certificate)
            self.ends_at = made.not_valid_after_utc
            if not authority.is_due(made):
                return
            self.ends_at = joining.renew(self.workspace, self.zone_root)
        except ApplianceError as error:
            _LOG.error(NOT_RENEWED, error_class=type(error).__name__)
            if self.ends_at is not None and self.ends_at <= now():
                _LOG.error(EXPIRED, ended_at=self.ends_at.isoformat())
            return
        _LOG.info(RENEWED, ends_at=self.ends_at.isoformat())

    def detail(self) -> dict[str, float]:
        """Return what the agent's signs of life say about it: the end, in seconds since the epoch."""
        return {} if self.ends_at is None else {"certificate_ends": self.ends_at.timestamp()}
