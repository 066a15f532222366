"""The coordinator's own certificates, of its server and its administrator: renewed before they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509

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
    own = (server, federation.admin_workspace / "startup" / "client.crt")
    due = [path for path in own if authority.is_due(x509.load_pem_x509_certificate(path.read_bytes()))]
    for path in due:  # the key is read then alone: this is asked twice a second
        write_private(path, authority.load(federation.root).renewed(path.read_bytes()))
        _LOG.info(OWN_RENEWED, name=path.stem)
    return bool(due)
