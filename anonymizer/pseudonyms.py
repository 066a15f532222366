"""Pseudonyms: stable, keyed, refused where the PatientID names nobody or more than one."""

from __future__ import annotations

import base64
import hmac
import re
import unicodedata
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from anonymizer.errors import UnusablePatientIDError

if TYPE_CHECKING:
    from anonymizer.keys import ProjectKeys

PLACEHOLDERS: Final = frozenset(
    """
    anon anonym anonymous anonymised anonymized anonymisiert deidentified blank default demo dummy empty
    example false generic id inconnu invalid missing mrn na nameless new nil no noid noname none notavailable
    notgiven notknown null nobody patient patientid pid phantom qa qc removed sample subject tba tbd temp
    temporary test testpatient todo true undefined unbekannt unidentified unk unknown unnamed unspecified
    emergency notfall trauma johndoe janedoe
    """.split()  # noqa: SIM905 - a list of words reads better than quotes
)
"""PatientIDs that stand for "no ID", letters and digits only, case-folded."""

_NUMBERED: Final = re.compile(
    r"(?:anon|anonym|anonymous|anonymi[sz]ed|anonymisiert|test|testpatient|unknown|unbekannt|patient)[0-9]{1,4}"
)
"""A counter behind such a word starts anew every day; a longer number may well be a person's."""
_COUNTING: Final = ("1234567890" * 7, "0123456789" * 7, "abcdefghijklmnopqrstuvwxyz")
_PSEUDONYM_BYTES: Final = 15


def pseudonym(keys: ProjectKeys, patient_id: str, issuer: str) -> str:
    """Return the pseudonym of a person: 24 characters of A-Z and 2-7.

    Parameters
    ----------
    patient_id : str
        PatientID (0010,0020); surrounding blanks are no part of it (PS3.5 6.2).
    issuer : str
        IssuerOfPatientID (0010,0021), or an empty string.

    Raises
    ------
    UnusablePatientIDError
        If the ID is empty, a placeholder, or multi-valued, or the issuer is: two persons would share one
        pseudonym, or one would have two.
    """
    trimmed = patient_id.strip(" \0")
    if "\\" in issuer:
        raise UnusablePatientIDError(
            "IssuerOfPatientID (0010,0021): more than one value; expected one at most"
        )
    _refuse_unusable(trimmed)
    parts = (issuer.strip(" \0"), trimmed)
    message = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode("utf-8") for part in parts))
    digest = hmac.new(keys.pseudonym, message, sha256).digest()
    return base64.b32encode(digest[:_PSEUDONYM_BYTES]).decode("ascii")


def _refuse_unusable(patient_id: str) -> None:
    if "\\" in patient_id:
        raise UnusablePatientIDError("PatientID (0010,0020): more than one value; expected exactly one")
    core = "".join(c for c in unicodedata.normalize("NFKC", patient_id).casefold() if c.isalnum())
    if not core:
        raise UnusablePatientIDError("PatientID (0010,0020): empty; expected an identifier")
    if (
        core in PLACEHOLDERS
        or _NUMBERED.fullmatch(core)
        or len(set(core)) == 1
        or (len(core) > 2 and any(run.startswith(core) for run in _COUNTING))
    ):
        raise UnusablePatientIDError(
            "PatientID (0010,0020): a placeholder; expected an identifier of one person"
        )
