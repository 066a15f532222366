"""Dates and times: one shift of whole days per patient.

Every date of a patient moves back by the same number of days, so intervals within a patient are exact, across
studies too, and nothing of two patients can be aligned. Whole days leave times of day as they are, so that
differences between times (decay correction, contrast phases) stay true over midnight. UTC offsets of DT
values are dropped with TimezoneOffsetFromUTC: what remains is local time, as in DA and TM.
"""

from __future__ import annotations

import hmac
import re
from datetime import date, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anonymizer.keys import ProjectKeys

_DA: Final = re.compile(
    r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII
)  # with dots: ACR-NEMA, still seen (PS3.5 6.2)
_TM: Final = re.compile(r"([01]\d|2[0-3])(?:([0-5]\d)(?:([0-5]\d|60)(?:\.\d{1,6})?)?)?", re.ASCII)
_TM_OLD: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d|60)(\.\d{1,6})?)?", re.ASCII)
_DT: Final = re.compile(r"(\d{4})(?:(\d{2})(?:(\d{2})(\d{2,6}(?:\.\d{1,6})?)?)?)?(?:[+-]\d{4})?", re.ASCII)
DUMMIES: Final = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}


def shift_days(keys: ProjectKeys, patient_id: str, issuer: str, max_days: int) -> int:
    """Return how many days this patient's dates move back: 1 to ``max_days``."""
    parts = [part.strip(" \0").encode("utf-8") for part in (issuer, patient_id)]
    message = b"".join(len(raw).to_bytes(4, "big") + raw for raw in parts)
    digest = hmac.new(keys.date, message, sha256).digest()
    return 1 + int.from_bytes(digest[:16], "big") % max_days


def shift(value: str, vr: str, days: int) -> str | None:
    """Shift one DA, DT or TM value (no backslash in it) back by whole days.

    Returns
    -------
    str or None
        The new value; an empty one for an empty one; None when the value is not a date or time that could be
        shifted (malformed, out of the calendar), and must not be kept.
    """
    text = value.strip(" \0")
    if not text:
        return ""
    if vr == "TM":
        return _time(text)
    return _date(text, days) if vr == "DA" else _datetime(text, days)


def _time(text: str) -> str | None:
    if _TM.fullmatch(text):
        return text
    old = _TM_OLD.fullmatch(text)
    return None if old is None else text.replace(":", "")


def _date(text: str, days: int) -> str | None:
    match = _DA.fullmatch(text)
    return None if match is None else _moved(match[1], match[2], match[3], days)


def _datetime(text: str, days: int) -> str | None:
    match = _DT.fullmatch(text)
    if match is None:
        return None
    year, month, day, rest = match.groups()
    if rest is not None and _TM.fullmatch(rest) is None:
        return None
    # A month or a year alone moves by its middle, so that its precision stays and its error is half of it at
    # most.
    moved = _moved(year, month or "07", day or ("15" if month else "01"), days)
    if moved is None:
        return None
    if day is not None:
        return moved + (rest or "")
    return moved[:6] if month is not None else moved[:4]


def _moved(year: str, month: str, day: str, days: int) -> str | None:
    try:
        moved = date(int(year), int(month), int(day)) - timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"
