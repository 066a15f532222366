"""Keys of one research project, derived from one master secret."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anonymizer.errors import AnonymizerError

MINIMUM_MASTER_BYTES = 16


@dataclass(frozen=True)
class ProjectKeys:
    """Separate keys for pseudonyms, UIDs and dates, so that knowing one map opens no other."""

    pseudonym: bytes = field(repr=False)
    uid: bytes = field(repr=False)
    date: bytes = field(repr=False)

    @classmethod
    def derive(cls, master: bytes, project: str) -> ProjectKeys:
        """Derive the keys of a project by HKDF-SHA-256 (RFC 5869).

        Parameters
        ----------
        master : bytes
            The site's pseudonymisation secret, at least 16 bytes.
        project : str
            Name of the research project; the same person has unlinkable pseudonyms in two projects.

        Raises
        ------
        AnonymizerError
            If the master secret is too short or the project has no name.
        """
        if len(master) < MINIMUM_MASTER_BYTES:
            raise AnonymizerError(f"master secret: expected at least {MINIMUM_MASTER_BYTES} bytes")
        if not project:
            raise AnonymizerError("project: expected a name")

        def key(purpose: str) -> bytes:
            info = b"\0".join((b"cloister", purpose.encode("ascii"), project.encode("utf-8")))
            return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(master)

        return cls(pseudonym=key("pseudonym"), uid=key("uid"), date=key("date"))
