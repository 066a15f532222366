"""The engine's folder at a site, and the section of ``cloister.toml`` that names it.

The start-up configuration and the site's policies are written here; nothing of them comes from outside.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from appliance.federation import policy
from appliance.federation.errors import EnrolmentError
from appliance.federation.provision import write_json, write_private, write_site_policies
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIGURATION: Final = "fed_client.json"
__all__ = [
    "Identity",
    "disable",
    "enable",
    "install",
    "private_key",
    "read",
    "section",
    "write_private",
]


@dataclass(frozen=True, repr=False)
class Identity:
    """With what a site connects: name, coordinator, certificate, key and the federation's root, as PEM."""

    site: str
    host: str
    port: int
    certificate: bytes
    key: bytes
    root: bytes

    def private_key(self) -> RSAPrivateKey:
        """Return the TLS key."""
        return private_key(self.key)


def private_key(content: bytes) -> RSAPrivateKey:
    """Read a key; raises EnrolmentError when it is none of the kind that is made here."""
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise EnrolmentError("the site's TLS key: cannot be read; join with a new code") from error
    if not isinstance(key, RSAPrivateKey):
        raise EnrolmentError("the site's TLS key: expected an RSA key; join with a new code")
    return key


def install(identity: Identity, settings: Settings) -> Path:
    """Write the engine's folder into the research zone, in place of an earlier one; return it."""
    workspace = settings.zone_root("research") / "federation" / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    startup = workspace / "startup"
    write_private(startup / "client.crt", identity.certificate)
    write_private(startup / "client.key", identity.key)
    write_private(startup / "rootCA.pem", identity.root)
    write_json(startup / CONFIGURATION, _engine_client(identity))
    write_site_policies(workspace / "local")
    (workspace / "transfer").mkdir(mode=0o700)
    return workspace


def read(workspace: Path) -> Identity:
    """Read the folder back.

    Raises
    ------
    EnrolmentError
        If this site has not joined, or a file is damaged.
    """
    startup = workspace / "startup"
    try:
        content = json.loads((startup / CONFIGURATION).read_text(encoding="utf-8"))
        host, _, port = str(content["servers"][0]["service"]["target"]).rpartition(":")
        files = [(startup / name).read_bytes() for name in ("client.crt", "client.key", "rootCA.pem")]
        for certificate in (files[0], files[2]):
            x509.load_pem_x509_certificate(certificate)
        return Identity(str(content["client"]["fqsn"]), host, int(port), *files)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EnrolmentError(f"{workspace}: this site has not joined; run: cloister join CODE") from error


def enable(config: Path, site: str, workspace: Path) -> None:
    """Turn the federation on in ``cloister.toml``, keeping everything else that stands there.

    Raises
    ------
    EnrolmentError
        If the file has a form that cannot be changed safely; it is then left as it was.
    """
    _set(config, _wanted(site, workspace), {"enabled": True, "site": site, "workspace": str(workspace)})


def disable(config: Path) -> None:
    """Turn the federation off in ``cloister.toml``; raises like :func:`enable`."""
    _set(config, {"enabled": "false"}, {"enabled": False})


def section(site: str, workspace: Path) -> list[str]:
    """Return the lines of ``cloister.toml`` that turn the federation on."""
    return _with_section("", "federation", _wanted(site, workspace)).strip().splitlines()


def _wanted(site: str, workspace: Path) -> dict[str, str]:
    return {"enabled": "true", "site": json.dumps(site), "workspace": json.dumps(str(workspace))}


def _set(config: Path, written: Mapping[str, str], values: Mapping[str, Any]) -> None:
    before = config.read_text(encoding="utf-8")
    after = _with_section(before, "federation", written)
    expected = tomllib.loads(before)
    expected["federation"] = {**expected.get("federation", {}), **values}
    if tomllib.loads(after) != expected:
        raise EnrolmentError(
            f"{config.name}: its federation section cannot be changed; expected a [federation] table"
        )
    write_private(config, after.encode("utf-8"))
    load_settings(config)


def _with_section(text: str, section: str, values: Mapping[str, str]) -> str:
    """Set keys in one table of a TOML text, line by line."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*{section}\s*\]\s*(#.*)?")
    start = next((i for i, line in enumerate(lines) if header.fullmatch(line)), None)
    written = [f"{key} = {value}" for key, value in values.items()]
    if start is None:
        return "\n".join([*lines, "", f"[{section}]", *written]) + "\n"
    end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    own = re.compile(rf"\s*({'|'.join(map(re.escape, values))})\s*=.*")
    kept = [line for line in lines[start + 1 : end] if not own.fullmatch(line)]
    return "\n".join([*lines[: start + 1], *written, *kept, *lines[end:]]) + "\n"


def _engine_client(identity: Identity) -> dict[str, Any]:
    return {
        "format_version": 2,
        "require_signed_jobs": True,
        "servers": [
            {
                "name": policy.PROJECT,
                "service": {"target": f"{identity.host}:{identity.port}", "scheme": policy.SCHEME},
                "identity": identity.host,
            }
        ],
        "client": {
            "ssl_private_key": "client.key",
            "ssl_cert": "client.crt",
            "ssl_root_cert": "rootCA.pem",
            "fqsn": identity.site,
            "is_leaf": True,
            "connection_security": "mtls",
        },
    }
