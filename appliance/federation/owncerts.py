"""The coordinator's own certificates, of its server and its administrator: renewed before they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance import logs
from appliance.federation import authority
from appliance.federation.provision import write_private

if TYPE_CHECKING:
    from appliance.federation.provision import Federation

OWN_RENEWED: Final = "federation.own_certificate_renewed"

_LOG = logs.logger(__name__)


def renew(federation: Federation) -> bool:
    """Renew what is due, with the same key; return whether the engine's server has to be started again.

    Raises
    ------
    CoordinatorError
        If the authority cannot be read.
    """
    server = federation.server_workspace / "startup" / "server.crt"
    renewed = False
    for path in (server, federation.admin_workspace / "startup" / "client.crt"):
        content = authority.renew_own(authority.load(federation.root), path)
        if content is not None:
            write_private(path, content)
            _LOG.info(OWN_RENEWED, name=path.stem)
            renewed = True
    return renewed
