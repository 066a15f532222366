"""Install a startup kit in a node. A kit is hostile input: four known files, nothing executed or trusted."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from appliance.federation import policy
from appliance.federation.errors import KitError
from appliance.federation.provision import (
    HOST_NAME,
    KIT_FILES,
    SITE_NAME,
    write_json,
    write_private,
    write_site_policies,
)
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Kit:
    """A kit that was read and checked."""

    site: str
    host: str
    port: int
    certificate: bytes
    key: bytes
    root_certificate: bytes


def read_kit(path: Path) -> Kit:
    """Read a kit file.

    Raises
    ------
    KitError
        Saying what is missing or wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name: _member(archive, name) for name in KIT_FILES}
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise KitError(f"{path.name}: cannot be read; expected a kit file of 'coordinator init'") from error
    description = _description(content["kit.json"])
    site, host, port = description.get("site"), description.get("host"), description.get("port")
    if not isinstance(site, str) or not SITE_NAME.fullmatch(site):
        raise KitError("kit.json: site: expected 1 to 40 letters, digits or hyphens")
    if not isinstance(host, str) or not HOST_NAME.fullmatch(host):
        raise KitError("kit.json: host: expected a host name or address")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise KitError("kit.json: port: expected 1 to 65535")
    kit = Kit(site, host, port, content["client.crt"], content["client.key"], content["rootCA.pem"])
    _check_certificates(kit)
    return kit


def install(kit: Kit, settings: Settings) -> Path:
    """Write the engine's workspace of this site into the research zone; return its folder.

    The start-up configuration and the site's policies are written here, never taken from the kit.
    """
    workspace = settings.zone_root("research") / "federation" / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    startup = workspace / "startup"
    write_private(startup / "client.crt", kit.certificate)
    write_private(startup / "client.key", kit.key)
    write_private(startup / "rootCA.pem", kit.root_certificate)
    write_json(startup / "fed_client.json", _engine_client(kit))
    write_site_policies(workspace / "local")
    (workspace / "transfer").mkdir(mode=0o700)
    return workspace


def enable(config: Path, kit: Kit, workspace: Path) -> None:
    """Turn the federation on in ``cloister.toml``, keeping everything else that stands there.

    Raises
    ------
    KitError
        If the file has a form that cannot be changed safely; it is then left as it was.
    """
    before = config.read_text(encoding="utf-8")
    after = _with_section(before, "federation", _wanted(kit, workspace))
    expected = tomllib.loads(before)
    expected["federation"] = {
        **expected.get("federation", {}),
        "enabled": True,
        "site": kit.site,
        "kit": str(workspace),
    }
    if tomllib.loads(after) != expected:
        raise KitError(
            f"{config.name}: its federation section cannot be changed; expected a [federation] table"
        )
    write_private(config, after.encode("utf-8"))
    load_settings(config)


def section(kit: Kit, workspace: Path) -> list[str]:
    """Return the lines of ``cloister.toml`` that turn the federation on."""
    return _with_section("", "federation", _wanted(kit, workspace)).strip().splitlines()


def _wanted(kit: Kit, workspace: Path) -> dict[str, str]:
    return {"enabled": "true", "site": json.dumps(kit.site), "kit": json.dumps(str(workspace))}


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


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except KeyError as error:
        raise KitError(f"{name}: missing; expected {', '.join(KIT_FILES)}") from error
    if len(content) > MAX_FILE_BYTES:
        raise KitError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return content


def _description(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise KitError("kit.json: not JSON") from error
    if not isinstance(value, dict) or value.get("version") != 1:
        raise KitError("kit.json: expected an object of version 1")
    return value


def _check_certificates(kit: Kit) -> None:
    """Refuse a certificate that is not the site's own, not of the kit's root, or not of the key."""
    try:
        root = x509.load_pem_x509_certificate(kit.root_certificate)
        certificate = x509.load_pem_x509_certificate(kit.certificate)
        key = serialization.load_pem_private_key(kit.key, password=None)
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise KitError("certificate: not signed by the kit's root, or unreadable") from error
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [kit.site]:
        raise KitError("certificate: made for another site than the kit says")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise KitError("certificate: does not belong to the kit's key")


def _engine_client(kit: Kit) -> dict[str, Any]:
    return {
        "format_version": 2,
        "require_signed_jobs": True,
        "servers": [
            {
                "name": policy.PROJECT,
                "service": {"target": f"{kit.host}:{kit.port}", "scheme": policy.SCHEME},
                "identity": kit.host,
            }
        ],
        "client": {
            "ssl_private_key": "client.key",
            "ssl_cert": "client.crt",
            "ssl_root_cert": "rootCA.pem",
            "fqsn": kit.site,
            "is_leaf": True,
            "connection_security": "mtls",
        },
    }
