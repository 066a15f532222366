"""Configuration parameters (PS3.2 N.6) and security (N.8)."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from anonymizer.options import codes_of
from anonymizer.profiles import load_profile
from appliance.conformance.markdown import bullets, table
from appliance.peer_values import NewPeer
from dicom_node import tls

if TYPE_CHECKING:
    from appliance.conformance.node import Inspected

_SECTIONS: Final = ("dicom", "assembly", "fetch", "dicomweb")


def blocks(found: Inspected) -> dict[str, str]:
    """Return the settings of a node and of a peer with their defaults, and what security says of them."""
    settings = [
        (f"`{section}.{name}`", _value(value))
        for section in _SECTIONS
        for name, value in getattr(found.settings, section)
    ]
    peer = NewPeer("x")
    of_peers = [
        (f"`{field.name}`", _value(getattr(peer, field.name)))
        for field in fields(NewPeer)
        if field.name != "name"
    ]
    profile = load_profile(found.settings.deidentification.profile)
    codes = [(code, "DCM", meaning) for code, meaning in codes_of(profile.options)]
    return {
        "ae_title": found.settings.dicom.ae_title,
        "settings": table(("parameter", "default"), settings),
        "peer_fields": table(("parameter", "default"), of_peers),
        "ciphers": bullets(f"`{cipher}`" for cipher in tls.CIPHERS),
        "client_certificates": found.settings.dicom.tls_client_certificates,
        "confidentiality": table(("code", "scheme", "meaning"), codes),
    }


def _value(value: object) -> str:
    if value is None or value in ("", {}, ()):
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
