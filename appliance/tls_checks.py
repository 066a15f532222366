"""Whether the node's own TLS is as it should be, and what is open without it."""

from __future__ import annotations

import os
import stat
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from appliance.health import Check
from dicom_node.tls import TLSError, TLSOptions, client_context, describe, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.settings import DICOMSettings, Settings

WARN_DAYS: Final = 30
_DAY_S: Final = 24 * 3600


def checks(settings: Settings) -> Iterator[Check]:
    """Look at what TLS of the DICOM service is made of."""
    dicom = settings.dicom
    if dicom.tls_certificate is not None and dicom.tls_key is not None:
        yield _usable(dicom)
        yield _expiry(dicom.tls_certificate)
        yield _key(dicom.tls_key)
    yield _plain(dicom)


def _usable(dicom: DICOMSettings) -> Check:
    name = "dicom tls"
    fix = "check dicom.tls_certificate, dicom.tls_key and dicom.tls_ca, and that this user may read them"
    options = TLSOptions(dicom.tls_certificate, dicom.tls_key, dicom.tls_ca, dicom.tls_client_certificates)
    try:
        if dicom.tls_port:
            server_context(options)
        else:
            client_context(options)
    except TLSError as error:
        return Check(name, ok=False, detail=str(error), fix=fix)
    where = f"port {dicom.tls_port}" if dicom.tls_port else "for the peers that we call"
    return Check(name, ok=True, detail=f"certificate and key fit, {where}")


def _expiry(path: Path) -> Check:
    name = "dicom certificate"
    fix = f"put a new certificate into {path}; it is taken without a restart"
    try:
        shown = describe(path.read_bytes())
    except (OSError, ValueError):
        return Check(name, ok=False, detail=f"{path} cannot be read as a certificate", fix=fix)
    days = (shown.expires.timestamp() - time.time()) / _DAY_S
    if days < 0:
        return Check(name, ok=False, detail=f"expired on {shown.expires:%Y-%m-%d}", fix=fix)
    detail = f"valid until {shown.expires:%Y-%m-%d} ({days:.0f} days), SHA-256 {shown.sha256}"
    if days < WARN_DAYS:
        return Check(name, ok=True, detail=detail, fix=fix, warning=True)
    return Check(name, ok=True, detail=detail)


def _key(path: Path) -> Check:
    name = "dicom key"
    try:
        status = path.stat()
    except OSError as error:
        fix = f"give this user the right to read {path}"
        return Check(name, ok=False, detail=f"{path} cannot be read ({error.strerror})", fix=fix)
    if stat.S_IMODE(status.st_mode) & 0o037 or (status.st_mode & stat.S_IRGRP and not _our_group(status)):
        fix = f"run: chmod 600 {path}, or 640 with this user's group"
        return Check(name, ok=False, detail="others may read or write it", fix=fix)
    return Check(name, ok=True, detail="readable by this user, or its group, alone")


def _our_group(status: os.stat_result) -> bool:
    return status.st_gid in {os.getegid(), *os.getgroups()}


def _plain(dicom: DICOMSettings) -> Check:
    name = "dicom port"
    if not dicom.plain:
        return Check(name, ok=True, detail=f"with TLS alone, on port {dicom.tls_port}")
    try:
        local = ip_address(dicom.host).is_loopback
    except ValueError:
        local = dicom.host == "localhost"
    if local:
        return Check(name, ok=True, detail="open to this machine alone")
    if dicom.tls_port:
        fix = "when all peers come over TLS, set dicom.plain = false"
        detail = (
            "identities may cross the network unencrypted: the port without TLS is open beside that with it"
        )
    else:
        fix = "set dicom.tls_port with certificate and key (docs/installation.md), then dicom.plain = false"
        detail = "identities cross the network unencrypted: the node listens without TLS beyond this machine"
    return Check(name, ok=True, detail=detail, fix=fix, warning=True)
