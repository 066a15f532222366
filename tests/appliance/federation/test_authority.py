from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.federation import authority, owncerts, provision
from appliance.federation.errors import CoordinatorError, EnrolmentError, ProvisioningError
from tests.appliance.federation.doorway import PEM, foreign_authority, new_key, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.federation.provision import Federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return provision.create(tmp_path_factory.mktemp("authority") / "c")


@pytest.fixture(scope="module")
def root(federation: Federation) -> authority.Authority:
    return authority.load(federation.root)


def test_of_a_request_the_key_alone_is_believed(root: authority.Authority) -> None:
    key = new_key()

    made = x509.load_pem_x509_certificate(root.sign_site(request(key, "coordinator@cloister.local"), "north"))

    made.verify_directly_issued_by(root.certificate)
    assert made.subject.rfc4514_string() == "O=cloister,CN=north"
    assert made.public_key() == key.public_key()
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    left = made.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=authority.SITE_VALID_DAYS - 1) < left <= timedelta(days=authority.SITE_VALID_DAYS)


def _tampered() -> bytes:
    made = x509.load_pem_x509_csr(request(new_key()))
    der = bytearray(made.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "other signature": _tampered,
    "elliptic": lambda: request(ec.generate_private_key(ec.SECP256R1())),
    "small": lambda: request(new_key(1024)),
    "exponent": lambda: request(rsa.generate_private_key(public_exponent=3, key_size=2048)),
    "large": lambda: b"A" * (authority.MAX_REQUEST_BYTES + 1),
    "a certificate": lambda: foreign_authority().pem,
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_request_is_refused(root: authority.Authority, kind: str) -> None:
    with pytest.raises(EnrolmentError, match="certificate request: "):
        root.sign_site(HOSTILE[kind](), "north")


def test_an_ed25519_request_is_refused(root: authority.Authority) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)

    with pytest.raises(EnrolmentError, match="RSA"):
        root.sign_site(made.public_bytes(PEM), "north")


def test_the_authoritys_files_have_to_belong_together(tmp_path: Path, federation: Federation) -> None:
    with pytest.raises(CoordinatorError, match=r"root\.pem and root\.key"):
        authority.load(tmp_path)
    folder = tmp_path / "authority"
    folder.mkdir()
    (folder / "root.pem").write_bytes(foreign_authority().pem)
    (folder / "root.key").write_bytes((federation.root / "authority" / "root.key").read_bytes())

    with pytest.raises(CoordinatorError, match="belongs"):
        authority.load(tmp_path)


def test_the_coordinators_own_certificates_are_renewed_when_a_third_of_their_life_is_left(
    federation: Federation, root: authority.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        federation.server_workspace / "startup" / "server.crt",
        federation.admin_workspace / "startup" / "client.crt",
    ]
    before = [x509.load_pem_x509_certificate(path.read_bytes()) for path in paths]
    assert not owncerts.renew(federation)

    monkeypatch.setattr(authority, "now", lambda: datetime.now(UTC) + timedelta(days=250))
    assert owncerts.renew(federation)

    assert not owncerts.renew(federation)
    for path, old in zip(paths, before, strict=True):
        new = x509.load_pem_x509_certificate(path.read_bytes())
        new.verify_directly_issued_by(root.certificate)
        assert (new.subject, new.public_key()) == (old.subject, old.public_key())
        assert [one.value for one in new.extensions] == [one.value for one in old.extensions]
        assert new.not_valid_after_utc > old.not_valid_after_utc + timedelta(days=200)


def test_a_provisioned_coordinator_knows_no_site_and_lets_nobody_else_read(federation: Federation) -> None:
    assert provision.load(federation.root) == federation
    assert not list(federation.root.rglob("*.zip"))
    secret = [
        path for path in federation.root.rglob("*") if path.suffix in {".key", ".pem"} and path.is_file()
    ]
    assert len(secret) >= 5
    assert federation.root.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in secret if path.suffix == ".key")
    with pytest.raises(ProvisioningError, match="not empty"):
        provision.create(federation.root)


@pytest.mark.parametrize("host", ["", "a b", "-x", "ho;st", "a" * 80])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ProvisioningError, match="host"):
        provision.create(tmp_path / "c", host)
