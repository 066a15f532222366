"""UIDs of results, derived: the same study revision, package and kind give the same UID."""

from __future__ import annotations

import hashlib
import uuid


def result_uid(revision_id: str, package_sha256: str, kind: str) -> str:
    """Return the UID of a result.

    Parameters
    ----------
    revision_id : str
        Row id of the study revision.
    package_sha256 : str
        Of the model package.
    kind : str
        Such as ``sr``, ``sc``, or ``sr.series`` for the series that holds it.

    Returns
    -------
    str
        A UUID-derived UID (PS3.5 B.2).
    """
    digest = hashlib.sha256(f"cloister result\x00{revision_id}\x00{package_sha256}\x00{kind}".encode())
    return f"2.25.{uuid.UUID(bytes=digest.digest()[:16], version=5).int}"
