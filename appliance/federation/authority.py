"""The coordinator's certificate authority: it believes nothing of a request but the key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.db.base import now
from appliance.federation import policy
from appliance.federation.errors import CoordinatorError, EnrolmentError
from appliance.federation.members import Certificate

if TYPE_CHECKING:
    from pathlib import Path

SITE_VALID_DAYS: Final = 180
OWN_VALID_DAYS: Final = 360
RENEW_AT: Final = 1 / 3  # of a certificate's life that is left
MAX_REQUEST_BYTES: Final = 8 * 1024
CLOCK_TOLERANCE: Final = timedelta(hours=1)  # a site's clock may be behind
_RSA_BITS: Final = range(2048, 4097)  # the engine signs its registration with RSA
_RSA_EXPONENT: Final = 65537


@dataclass(frozen=True, repr=False)
class Authority:
    """The root certificate and its key."""

    certificate: x509.Certificate
    key: RSAPrivateKey

    @property
    def pem(self) -> bytes:
        """The root certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign_site(self, request: bytes, site: str, valid: timedelta | None = None) -> bytes:
        """Sign a certificate with which a site connects; subject, role and dates are decided here.

        Parameters
        ----------
        request : bytes
            PEM of a certificate request; its signature proves that the asking side has the key.
        site : str
            Name of the site, by the invitation or the member table.

        Returns
        -------
        bytes
            The certificate as PEM: for connecting alone (extended key usage), never for serving or signing.

        Raises
        ------
        EnrolmentError
            If the request is not one, its signature is wrong, or its key is of another kind than expected.
        """
        names = [
            x509.NameAttribute(NameOID.COMMON_NAME, site),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, policy.ORGANIZATION),
        ]
        key = requested_key(request)
        made = self._builder(
            x509.Name(names), key, timedelta(days=SITE_VALID_DAYS) if valid is None else valid
        )
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
            (x509.SubjectAlternativeName([x509.DNSName(site)]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        )
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def renewed(self, old: bytes) -> bytes:
        """Return one of the coordinator's own certificates, the same but for dates and serial number."""
        before = x509.load_pem_x509_certificate(old)
        key = before.public_key()
        if not isinstance(key, RSAPublicKey):
            raise CoordinatorError("certificate: expected one with an RSA key")
        made = self._builder(before.subject, key, timedelta(days=OWN_VALID_DAYS))
        for extension in before.extensions:
            made = made.add_extension(extension.value, extension.critical)
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject: x509.Name, key: RSAPublicKey, valid: timedelta) -> x509.CertificateBuilder:
        at = now()
        ends = min(at + valid, self.certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(at, ends) - CLOCK_TOLERANCE)
            .not_valid_after(ends)
        )


def load(root: Path) -> Authority:
    """Read the authority of a coordinator's folder.

    Raises
    ------
    CoordinatorError
        If it is missing or damaged.
    """
    folder = root / "authority"
    try:
        certificate = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "root.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CoordinatorError(f"{folder}: cannot be read; expected root.pem and root.key") from error
    if not isinstance(key, RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise CoordinatorError(f"{folder}: expected an RSA key that belongs to the root certificate")
    return Authority(certificate, key)


def requested_key(request: bytes) -> RSAPublicKey:
    """Return the key of a certificate request whose signature is right; raises EnrolmentError."""
    if len(request) > MAX_REQUEST_BYTES:
        raise EnrolmentError(f"certificate request: expected at most {MAX_REQUEST_BYTES} bytes")
    try:
        asked = x509.load_pem_x509_csr(request)
        key = asked.public_key()
        genuine = asked.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise EnrolmentError("certificate request: cannot be read; expected PEM of a PKCS #10") from error
    if not genuine:
        raise EnrolmentError(
            "certificate request: its signature is wrong; expected one made with its own key"
        )
    if not isinstance(key, RSAPublicKey) or key.key_size not in _RSA_BITS:
        raise EnrolmentError("certificate request: expected an RSA key of 2048 to 4096 bits")
    if key.public_numbers().e != _RSA_EXPONENT:
        raise EnrolmentError(f"certificate request: expected the exponent {_RSA_EXPONENT}")
    return key


def described(certificate: bytes) -> Certificate:
    """Return what the member table keeps of a certificate."""
    made = x509.load_pem_x509_certificate(certificate)
    return Certificate(f"{made.serial_number:x}", made.not_valid_after_utc)


def is_due(certificate: x509.Certificate) -> bool:
    """Whether a certificate is so near its end that it has to be renewed."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return ends - now() < (ends - begins) * RENEW_AT


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's DER form."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
