"""A site joins, renews and leaves. Its keys are made here, in the research zone, and never leave it."""

from __future__ import annotations

import base64
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from appliance import durable, keys
from appliance.db.base import now
from appliance.federation import askcoordinator, authority, joincode, statements, workspaces
from appliance.federation.askcoordinator import Address
from appliance.federation.errors import EnrolmentError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from appliance.settings import Settings

KEY_BITS: Final = 2048
_PENDING: Final = "joining.key"


@dataclass(frozen=True)
class Joined:
    """What a site has after joining."""

    site: str
    address: Address
    ends_at: datetime
    workspace: Path


def join(text: str, settings: Settings) -> Joined:
    """Enrol with a code; asked again after a lost answer, the same keys get a certificate once more.

    Raises
    ------
    EnrolmentError, StrangeRootError, CoordinatorAwayError
        Saying what is wrong, and on which side.
    KeyFileError
        If the research zone's keys are damaged.
    """
    code = joincode.parse(text)
    address = Address(code.host, code.port)
    root = askcoordinator.learn_root(address, code.fingerprint)
    zone = settings.zone_root("research")
    keys.create_research_keys(zone)
    signing = keys.load_research_keys(zone).signing
    tls = _pending_key(zone / "federation" / _PENDING)
    request = _request(tls)
    made = statements.enrol(_root_sha256(root), request, code.selector)
    question = {
        "ask": "enrol",
        "selector": code.selector,
        "secret": code.secret,
        "request": request,
        "key": signing.public_key().public_bytes_raw().hex(),
        "signature": base64.b64encode(signing.sign(made)).decode("ascii"),
    }
    answer = askcoordinator.ask(address, root, question)
    site = str(answer.get("site"))
    if not joincode.SITE_NAME.fullmatch(site):
        raise EnrolmentError("the coordinator's answer: site: expected 1 to 40 letters, digits or hyphens")
    certificate = _checked(answer, root, tls, site)
    identity = workspaces.Identity(site, address.host, address.port, certificate, _pem(tls), root)
    workspace = workspaces.install(identity, settings)
    (zone / "federation" / _PENDING).unlink()
    return Joined(site, address, authority.described(certificate).ends_at, workspace)


def renew(workspace: Path, zone_root: Path) -> datetime:
    """Get a new certificate for the same key and put it in the old one's place; return its end.

    The site's signing key vouches for the request, so one whose certificate has ended may renew it too.
    The engine reads the file whenever it connects: what runs goes on.

    Raises
    ------
    EnrolmentError, StrangeRootError, CoordinatorAwayError
        Saying what is wrong, and on which side.
    """
    here = workspaces.read(workspace)
    request = _request(here.private_key())
    answer = ask_as_member("renew", here, zone_root, request)
    certificate = _checked(answer, here.root, here.private_key(), here.site)
    durable.write_whole(workspace / "startup" / "client.crt", certificate)
    return authority.described(certificate).ends_at


def leave(workspace: Path, zone_root: Path) -> None:
    """Tell the coordinator that this site leaves; raises like :func:`renew`."""
    ask_as_member("leave", workspaces.read(workspace), zone_root, "")


def forget(workspace: Path) -> None:
    """Remove certificate and key: this site connects no more, whatever the coordinator thinks."""
    shutil.rmtree(workspace)


def ask_as_member(what: str, here: workspaces.Identity, zone_root: Path, request: str) -> dict[str, Any]:
    """Ask a member's question, which the research zone's key signs; raises like :func:`renew`."""
    signing = keys.load_research_keys(zone_root).signing
    at = now().isoformat()
    made = statements.ask(what, _root_sha256(here.root), here.site, at, request)
    question = {
        "ask": what,
        "site": here.site,
        "at": at,
        "request": request,
        "serial": authority.described(here.certificate).serial,
        "signature": base64.b64encode(signing.sign(made)).decode("ascii"),
    }
    return askcoordinator.ask(Address(here.host, here.port), here.root, question)


def _pending_key(path: Path) -> rsa.RSAPrivateKey:
    """Return the TLS key of a joining that was begun, or a new one."""
    if path.is_file():
        return workspaces.private_key(path.read_bytes())
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    workspaces.write_private(path, _pem(key))
    return key


def _request(key: rsa.RSAPrivateKey) -> str:
    """Return a request for a certificate: of everything in it the coordinator takes the key alone."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _checked(answer: dict[str, Any], root: bytes, key: rsa.RSAPrivateKey, site: str) -> bytes:
    """Return the answer's certificate when it is of this root, for this key and this site."""
    content = str(answer.get("certificate", "")).encode()
    try:
        made = x509.load_pem_x509_certificate(content)
        made.verify_directly_issued_by(x509.load_pem_x509_certificate(root))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise EnrolmentError("the coordinator's answer: a certificate that is not of its root") from error
    names = [str(name.value) for name in made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site] or made.public_key() != key.public_key():
        raise EnrolmentError("the coordinator's answer: a certificate for another site or another key")
    return made.public_bytes(serialization.Encoding.PEM)


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _root_sha256(root: bytes) -> bytes:
    return authority.fingerprint(x509.load_pem_x509_certificate(root))
