"""Values of common VRs in the DICOM JSON model, straight from their bytes (PS3.18 annex F.2.2).

A series has hundreds of instances with a hundred attributes each, and a viewer wants all before it shows
the first picture. What is plain is taken here; everything else goes the thorough way.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataelem import DataElement

_TEXTS: Final = frozenset({"AS", "CS", "DA", "DT", "LO", "SH", "TM", "UC", "UI"})
_PADDED: Final = frozenset({"LO", "SH", "UC"})  # each of several values may end with spaces
_FORMATS: Final = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
_ESCAPE: Final = 0x1B


def plain(element: RawDataElement | DataElement) -> dict[str, Any] | None:
    """Return an attribute as :mod:`pydicom` would.

    Returns
    -------
    dict or None
        None where the value is not in memory or was read already, is not plain ASCII where text is expected,
        not a number where one is, or of a VR that takes more than that.
    """
    if not isinstance(element, RawDataElement):
        return None
    raw, vr = element.value, element.VR or _vr_of(element)
    if raw is None:
        return None
    if vr in _TEXTS:
        return _text(vr, raw)
    if vr in _FORMATS:
        return _numbers(vr, raw, little=element.is_little_endian)
    if vr in {"DS", "IS"}:
        return _written_numbers(vr, raw)
    return None


def _vr_of(element: RawDataElement) -> str:
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else ""


def _text(vr: str, raw: bytes) -> dict[str, Any] | None:
    if not raw.isascii() or _ESCAPE in raw:
        return None
    text = raw.decode("ascii").rstrip(" \0")
    if not text:
        return {"vr": vr}
    parts = text.split("\\")
    return _described(vr, [part.rstrip(" ") for part in parts] if vr in _PADDED else parts)


def _numbers(vr: str, raw: bytes, *, little: bool) -> dict[str, Any] | None:
    if not raw:
        return {"vr": vr}
    count, rest = divmod(len(raw), struct.calcsize(_FORMATS[vr]))
    if rest:
        return None
    values = struct.unpack(f"{'<' if little else '>'}{count}{_FORMATS[vr]}", raw)
    return _described(vr, values) if all(map(math.isfinite, values)) else None


def _written_numbers(vr: str, raw: bytes) -> dict[str, Any] | None:
    text = raw.decode("latin-1").strip(" \0")
    if not text:
        return {"vr": vr}
    number = int if vr == "IS" else float
    try:
        values = [number(part) for part in text.split("\\")]
        finite = all(map(math.isfinite, values))
    except (ValueError, OverflowError):  # the latter of an integer beyond any float
        return None
    return _described(vr, values) if finite else None


def _described(vr: str, values: Sequence[Any]) -> dict[str, Any]:
    return {"vr": vr, "Value": [None if value == "" else value for value in values]}
