"""The header of a stored instance: what filing needs, from files that may be hostile.

No value of the data set ever becomes part of a path; UIDs are checked all the same (PS3.5 section 9).
"""

from __future__ import annotations

import mmap
import re
import warnings
import zlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from dicom_node import elements, part10
from dicom_node.errors import HeaderError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

_UID: Final = re.compile(r"(?=.{1,64}\Z)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+\Z", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_IMPLICIT: Final = frozenset({"1.2.840.10008.1.2"})
_BIG_ENDIAN: Final = frozenset({"1.2.840.10008.1.2.2"})
# PS3.5 A.5, A.8, A.12: the whole data set is deflated.
_DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_PATIENT_ID: Final = 0x00100020
_ISSUER_OF_PATIENT_ID: Final = 0x00100021
_STUDY_INSTANCE_UID: Final = 0x0020000D
_SERIES_INSTANCE_UID: Final = 0x0020000E
_IDENTIFIERS: Final = (
    _SOP_CLASS_UID,
    _SOP_INSTANCE_UID,
    _PATIENT_ID,
    _ISSUER_OF_PATIENT_ID,
    _STUDY_INSTANCE_UID,
    _SERIES_INSTANCE_UID,
)

# Attributes for people and queries: field -> tag, longest text that is kept, whether its VR takes other
# character sets than ASCII (PS3.5 6.1.2.2).
_TEXTS: Final[Mapping[str, tuple[int, int, bool]]] = MappingProxyType(
    {
        "patient_name": (0x00100010, 400, True),
        "patient_birth_date": (0x00100030, 16, False),
        "patient_sex": (0x00100040, 16, False),
        "study_date": (0x00080020, 16, False),
        "study_time": (0x00080030, 16, False),
        "accession_number": (0x00080050, 64, True),
        "referring_physician_name": (0x00080090, 400, True),
        "study_id": (0x00200010, 64, True),
        "study_description": (0x00081030, 64, True),
        "modality": (0x00080060, 16, False),
        "body_part_examined": (0x00180015, 16, False),
        "series_number": (0x00200011, 16, False),
        "series_description": (0x0008103E, 64, True),
        "protocol_name": (0x00181030, 64, True),
        "station_name": (0x00081010, 64, True),
        "institution_name": (0x00080080, 64, True),
        "manufacturer": (0x00080070, 64, True),
        "manufacturer_model_name": (0x00081090, 64, True),
        "performed_procedure_step_start_date": (0x00400244, 16, False),
        "performed_procedure_step_start_time": (0x00400245, 16, False),
        "instance_number": (0x00200013, 16, False),
    }
)
_SHORTS: Final[Mapping[str, int]] = MappingProxyType(
    {"rows": 0x00280010, "columns": 0x00280011, "bits_allocated": 0x00280100}
)
_NUMBER_OF_FRAMES: Final = 0x00280008
_MAX_INTEGER: Final = 2**31 - 1  # PS3.5 6.2, IS
_WANTED: Final = frozenset(
    {
        _SPECIFIC_CHARACTER_SET,
        *_IDENTIFIERS,
        *(tag for tag, _, _ in _TEXTS.values()),
        *_SHORTS.values(),
        _NUMBER_OF_FRAMES,
    }
)
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class InstanceHeader:
    """Attributes of one instance, as text, trimmed, without control characters.

    ``patient_id`` keeps a backslash: whether several values are usable is not for this package to decide.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    study_date: str
    study_time: str
    accession_number: str
    referring_physician_name: str
    study_id: str
    study_description: str
    modality: str
    body_part_examined: str
    series_number: str
    series_description: str
    protocol_name: str
    station_name: str
    institution_name: str
    manufacturer: str
    manufacturer_model_name: str
    performed_procedure_step_start_date: str
    performed_procedure_step_start_time: str
    instance_number: str
    rows: int | None
    columns: int | None
    bits_allocated: int | None
    number_of_frames: int | None


def is_uid(text: str) -> bool:
    """Say whether a text is a valid UID: digits and dots, no leading zeros, at most 64 characters."""
    return _UID.match(text) is not None


def read_header(path: Path, *, max_inflated_bytes: int = 4 << 30) -> InstanceHeader:
    """Read the header of a Part 10 file, and check that its data set is whole.

    Raises
    ------
    HeaderError
        With a code: ``not_part10``, ``bad_file_meta``, ``empty``, ``truncated``, ``not_a_data_set``,
        ``ambiguous``, ``too_complex``, ``bad_deflate``, ``missing_uid``, ``invalid_uid``, ``value_too_long``.
    """
    with path.open("rb") as file:
        meta = part10.decode(file.read(part10.MAX_META_BYTES))
        syntax = meta.uid(0x0010)
        if not is_uid(syntax):
            raise HeaderError("bad_file_meta", "no valid TransferSyntaxUID in the file meta information")
        encoding = elements.Encoding(implicit=syntax in _IMPLICIT, big_endian=syntax in _BIG_ENDIAN)
        if syntax in _DEFLATED:
            source = _Inflating(file, meta.data_offset, max_inflated_bytes)
            values = elements.scan(b"", 0, encoding, _WANTED, source.piece)
        else:
            values = _scan(file, meta.data_offset, encoding)
    return _header(values, syntax)


def _scan(file: BinaryIO, offset: int, encoding: elements.Encoding) -> dict[int, bytes]:
    file.seek(0, 2)
    if file.tell() <= offset:
        raise HeaderError("empty", "no data set behind the file meta information")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return elements.scan(data, offset, encoding, _WANTED)


class _Inflating:
    """A deflated data set, a piece at a time: it may be a bomb, so no more than a piece is ever held."""

    def __init__(self, file: BinaryIO, offset: int, limit: int) -> None:
        file.seek(offset)
        self._file = file
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._left = limit

    def piece(self) -> bytes:
        """Return the next bytes of the data set, none at its end."""
        try:
            while not self._inflater.eof:
                chunk = self._inflater.unconsumed_tail or self._file.read(_CHUNK_BYTES)
                piece = self._inflater.decompress(chunk, _CHUNK_BYTES)
                self._left -= len(piece)
                if self._left < 0:
                    raise HeaderError("too_complex", "the inflated data set is longer than allowed")
                if piece:
                    return piece
                if not chunk:
                    raise HeaderError("truncated", "the deflated data set ends too early")
        except zlib.error as error:
            raise HeaderError("bad_deflate", "the data set cannot be inflated") from error
        return b""


def _header(values: dict[int, bytes], syntax: str) -> InstanceHeader:
    encodings = _encodings(values.get(_SPECIFIC_CHARACTER_SET, b""))
    order: Literal["big", "little"] = "big" if syntax in _BIG_ENDIAN else "little"
    texts: dict[str, Any] = {
        field: _text(values.get(tag, b""), encodings if extended else ["ascii"])[:longest]
        for field, (tag, longest, extended) in _TEXTS.items()
    }
    shorts: dict[str, Any] = {field: _short(values.get(tag, b""), order) for field, tag in _SHORTS.items()}
    return InstanceHeader(
        sop_class_uid=_uid(values, _SOP_CLASS_UID, "SOPClassUID"),
        sop_instance_uid=_uid(values, _SOP_INSTANCE_UID, "SOPInstanceUID"),
        study_instance_uid=_uid(values, _STUDY_INSTANCE_UID, "StudyInstanceUID"),
        series_instance_uid=_uid(values, _SERIES_INSTANCE_UID, "SeriesInstanceUID"),
        transfer_syntax_uid=syntax,
        patient_id=_identifier(values, _PATIENT_ID, "PatientID", encodings),
        issuer_of_patient_id=_identifier(values, _ISSUER_OF_PATIENT_ID, "IssuerOfPatientID", encodings),
        **texts,
        **shorts,
        number_of_frames=_integer(values.get(_NUMBER_OF_FRAMES, b"")),
    )


def _short(raw: bytes, order: Literal["big", "little"]) -> int | None:
    return int.from_bytes(raw, order) if len(raw) == 2 else None


def _integer(raw: bytes) -> int | None:
    text = raw.strip(b"\0 ")
    return int(text) if text.isdigit() and len(text) <= 10 and int(text) <= _MAX_INTEGER else None


def _uid(values: dict[int, bytes], tag: int, keyword: str) -> str:
    raw = values.get(tag, b"").rstrip(b"\0 ")
    if not raw:
        raise HeaderError("missing_uid", f"no {keyword}; expected one in every instance")
    text = raw.decode("ascii", "replace")
    if not is_uid(text):
        raise HeaderError("invalid_uid", f"{keyword} is no valid UID (PS3.5 9.1)")
    return text


def _identifier(values: dict[int, bytes], tag: int, keyword: str, encodings: list[str]) -> str:
    """Return an identifier whole or not at all: cut or cleaned it would be somebody else's."""
    raw = values.get(tag, b"")
    text = _decode(raw.rstrip(b"\0 ").lstrip(b" "), encodings)
    if len(text) > 64:
        raise HeaderError("value_too_long", f"{keyword} is longer than 64 characters (PS3.5 6.2, LO)")
    if _CONTROL.search(text) or "\N{REPLACEMENT CHARACTER}" in text:
        raise HeaderError("ambiguous", f"{keyword} cannot be read without loss")
    return text


def _text(raw: bytes, encodings: list[str]) -> str:
    return _CONTROL.sub("", _decode(raw, encodings)).strip()


def _decode(raw: bytes, encodings: list[str]) -> str:
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    from pydicom.charset import decode_bytes  # noqa: PLC0415 -- most headers are ASCII and never need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = decode_bytes(raw, encodings, set())
            text.encode()  # some of Python's own codecs make text that no database takes
    except (LookupError, ValueError):
        return raw.decode("ascii", "replace")
    return text


def _encodings(raw: bytes) -> list[str]:
    """Return Python's codecs for SpecificCharacterSet (PS3.3 C.12.1.1.2); unknown terms read as ASCII."""
    text = raw.decode("ascii", "replace").strip("\0 ")
    if not text:
        return ["ascii"]
    from pydicom.charset import convert_encodings  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(convert_encodings([term.strip() for term in text.split("\\")]))
    except (LookupError, ValueError):
        return ["ascii"]
