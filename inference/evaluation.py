"""The report of a model's evaluation on a hold-out, signed by who evaluated it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from inference.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FORMAT: Final = "cloister-evaluation/1"
MAX_REPORT_BYTES: Final = 1 << 20
_SIGNED_AS: Final = b"cloister evaluation report 1\n"


def sign_report(
    package_sha256: str, metrics: Mapping[str, Any], facts: Mapping[str, Any], key: Ed25519PrivateKey
) -> bytes:
    """Return an evaluation report as JSON with its signature.

    Parameters
    ----------
    package_sha256 : str
        The package that was evaluated.
    metrics : mapping
        Plain JSON values such as AUC with its confidence interval.
    facts : mapping
        What it was evaluated on: counts, hash of the dataset version, run, round; nothing of a person.
    key : Ed25519PrivateKey
        Of who evaluated.
    """
    body = {
        "format": FORMAT,
        "package_sha256": package_sha256,
        "metrics": dict(metrics),
        "facts": dict(facts),
    }
    report = {**body, "signature": key.sign(_SIGNED_AS + _canonical(body)).hex()}
    return (json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_report(
    content: bytes, package_sha256: str, trusted_signers: Mapping[str, Ed25519PublicKey]
) -> dict[str, Any]:
    """Return a verified report without its signature: ``package_sha256``, ``metrics``, ``facts``.

    Raises
    ------
    PackageError
        ``evaluation`` if it is not a report on this package by a trusted signer.
    """
    if len(content) > MAX_REPORT_BYTES:
        raise PackageError("evaluation", f"expected at most {MAX_REPORT_BYTES} bytes")
    try:
        report = json.loads(content)
        signature = bytes.fromhex(report.pop("signature"))
        signed = _SIGNED_AS + _canonical(report)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PackageError("evaluation", "not a signed evaluation report") from error
    if not any(_verifies(key, signature, signed) for key in trusted_signers.values()):
        raise PackageError("evaluation", "signed by nobody whom this node trusts, or changed since")
    if set(report) != {"format", "package_sha256", "metrics", "facts"} or report["format"] != FORMAT:
        raise PackageError("evaluation", f"expected the format {FORMAT}")
    if report["package_sha256"] != package_sha256 or not isinstance(report["metrics"], dict):
        raise PackageError("evaluation", "speaks of another package")
    return dict(report)


def _verifies(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
