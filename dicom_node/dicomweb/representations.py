"""What of a request's Accept header can be given: instances and frames in transfer syntaxes (PS3.18 8.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dicom_node.dicomweb.frame import DICOMwebError
from dicom_node.index import is_uid
from dicom_node.transcoding import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
    UNCOMPRESSED,
    can_transcode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.dicomweb.media import MediaType

DICOM: Final = "application/dicom"
OCTETS: Final = "application/octet-stream"
MULTIPART: Final = "multipart/related"
AS_STORED: Final = "*"

# PS3.18 tables 8.7.3-2 and 8.7.3-5: media types of compressed frames, each with its default syntax first.
COMPRESSED: Final = {
    "image/jpeg": tuple(f"1.2.840.10008.1.2.4.{number}" for number in (70, 50, 51, 57)),
    "image/dicom-rle": (RLE_LOSSLESS,),
    "image/jls": (JPEG_LS_LOSSLESS, "1.2.840.10008.1.2.4.81"),
    "image/jp2": (JPEG_2000_LOSSLESS, "1.2.840.10008.1.2.4.91"),
    "image/jpx": ("1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93"),
    "image/jphc": tuple(f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)),
    "image/jxl": tuple(f"1.2.840.10008.1.2.4.{number}" for number in (110, 111, 112)),
    "video/mpeg2": tuple(f"1.2.840.10008.1.2.4.{number}" for number in ("100", "100.1", "101", "101.1")),
    "video/mp4": tuple(f"1.2.840.10008.1.2.4.{number}" for number in ("102", "102.1", "103", "103.1")),
}
_TYPE_OF: Final = {uid: name for name, uids in COMPRESSED.items() for uid in uids}


@dataclass(frozen=True)
class Wish:
    """One thing that a client accepts: in one part or many, of which type, in which transfer syntax."""

    multipart: bool
    kind: str
    transfer_syntax: str  # "": the default of the type; "*": as stored


def wishes(accepted: Sequence[MediaType]) -> Iterator[Wish]:
    """Return what a client accepts, the most wanted first."""
    for one in accepted:
        syntax = one.parameters.get("transfer-syntax", "")
        if syntax not in {"", AS_STORED} and not is_uid(syntax):
            raise DICOMwebError(400, "Accept: expected a UID, or *, as transfer-syntax.")
        if one.name in {MULTIPART, "multipart/*", "*/*"}:
            yield Wish(True, one.parameters.get("type", "*/*").lower(), syntax)  # noqa: FBT003
        else:
            yield Wish(False, one.name, syntax)  # noqa: FBT003


def instance_syntax(wish: Wish, stored: str) -> str | None:
    """Return the transfer syntax in which an instance goes out as a Part 10 file; None for not at all."""
    if wish.kind not in {DICOM, "application/*", "*/*"}:
        return None
    if wish.transfer_syntax == AS_STORED:
        return stored
    wanted = wish.transfer_syntax or EXPLICIT_VR_LITTLE_ENDIAN
    return wanted if can_transcode(stored, wanted) else None


@dataclass(frozen=True)
class FrameForm:
    """How frames go out."""

    media_type: str
    transfer_syntax: str

    @property
    def header(self) -> str:
        """The Content-Type of a part."""
        return f"{self.media_type}; transfer-syntax={self.transfer_syntax}"


def frame_form(wish: Wish, stored: str) -> FrameForm | None:
    """Return how frames of an instance go out; None for not at all."""
    as_stored = FrameForm(_TYPE_OF.get(stored, OCTETS), stored)
    if stored in UNCOMPRESSED:
        as_stored = FrameForm(OCTETS, EXPLICIT_VR_LITTLE_ENDIAN)
    plain = FrameForm(OCTETS, EXPLICIT_VR_LITTLE_ENDIAN)
    if wish.kind in {OCTETS, "application/*", "*/*"}:
        if wish.transfer_syntax in {AS_STORED, stored}:
            return as_stored
        if wish.transfer_syntax in {"", EXPLICIT_VR_LITTLE_ENDIAN}:
            return plain if can_transcode(stored, EXPLICIT_VR_LITTLE_ENDIAN) else None
        return None
    offered = COMPRESSED.get(wish.kind) if wish.kind != "image/*" else tuple(_TYPE_OF)
    if offered is None:
        return None
    if stored in offered and wish.transfer_syntax in {"", AS_STORED, stored}:
        return as_stored
    wanted = wish.transfer_syntax or offered[0]
    return FrameForm(wish.kind, wanted) if wanted in offered and can_transcode(stored, wanted) else None
