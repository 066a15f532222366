"""Writing an instance in another transfer syntax (PS3.5 annex A): what a peer asks for, without loss.

Pixel values stay as they are. Lossy targets are not offered: a picture that loses something is another one.
"""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any, Final

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"

MAX_DECODED_BYTES: Final = 1 << 30  # of pixel data that are in memory meanwhile

PLAIN_TARGETS: Final = frozenset(
    {IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN}
)
COMPRESSED_TARGETS: Final = frozenset({RLE_LOSSLESS, JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS})
UNCOMPRESSED: Final = PLAIN_TARGETS | {EXPLICIT_VR_BIG_ENDIAN}
DECODED: Final = frozenset(
    {
        RLE_LOSSLESS,
        *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    }
)
_WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


class TranscodingError(DICOMNodeError):
    """An instance cannot be written in a transfer syntax; the text says why, without a value."""


def can_transcode(source: str, target: str) -> bool:
    """Whether instances of one transfer syntax can be written in another, as far as the syntaxes say.

    Parameters
    ----------
    source, target : str
        Transfer Syntax UIDs.
    """
    if source == target:
        return True
    return source in UNCOMPRESSED | DECODED and target in PLAIN_TARGETS | COMPRESSED_TARGETS


def transcode(source: Path, target: Path, transfer_syntax_uid: str) -> None:
    """Write a Part 10 file in another transfer syntax.

    Parameters
    ----------
    source : Path
        A Part 10 file. One that is in the wanted transfer syntax already is copied.
    target : Path
        Written new; of a failure nothing stays.
    transfer_syntax_uid : str

    Raises
    ------
    TranscodingError
        When the file cannot be read or decoded, or its pixel data does not fit the transfer syntax.
    OSError
        When the target cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they name values
        try:
            _transcode(source, target, transfer_syntax_uid)
        except (TranscodingError, OSError):
            target.unlink(missing_ok=True)
            raise
        except Exception as error:  # noqa: BLE001 -- the codecs' and the library's, on bytes from anywhere
            target.unlink(missing_ok=True)
            raise TranscodingError(f"the instance cannot be converted: {type(error).__name__}") from None


def _transcode(source: Path, target: Path, uid: str) -> None:
    from pydicom import dcmread  # noqa: PLC0415 - heavy, for the first conversion

    ds = dcmread(source)
    stored = str(ds.file_meta.get("TransferSyntaxUID", ""))
    if stored == uid:
        shutil.copyfile(source, target)
        return
    if not can_transcode(stored, uid):
        raise TranscodingError("no conversion between these transfer syntaxes")
    if stored in DECODED:
        _decompress(ds)
    elif stored == EXPLICIT_VR_BIG_ENDIAN:
        _swap_words(ds)
    if uid in COMPRESSED_TARGETS:
        _compress(ds, uid)
    _write(ds, target, uid)


def _decompress(ds: Dataset) -> None:
    if "PixelData" not in ds:
        return
    if int(ds.BitsAllocated) == 1:
        raise TranscodingError("compressed pixel data of one bit")
    size = int(ds.Rows) * int(ds.Columns) * int(ds.get("NumberOfFrames") or 1)
    size *= int(ds.get("SamplesPerPixel") or 1) * (int(ds.BitsAllocated) // 8 or 1)
    if size > MAX_DECODED_BYTES:
        raise TranscodingError(f"decoded pixel data of more than {MAX_DECODED_BYTES >> 20} MiB")
    # What RLE holds is kept as it is; colour that a JPEG codec made is given as RGB, as its label then says.
    ds.decompress(as_rgb=str(ds.file_meta.TransferSyntaxUID) != RLE_LOSSLESS, generate_instance_uid=False)


def _compress(ds: Dataset, uid: str) -> None:
    from pydicom.uid import ExplicitVRLittleEndian  # noqa: PLC0415 - as above

    if "PixelData" not in ds:
        raise TranscodingError("no pixel data to compress")
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # what the encoders are given
    ds.compress(uid, generate_instance_uid=False)


def _swap_words(ds: Dataset) -> None:
    """Turn the words of bulk values, which the library takes as bytes; pixels of 32 bits are whole words."""
    pixel_bytes = int(ds.get("BitsAllocated") or 16) // 8
    for element in _elements(ds):
        width = _WORD_BYTES.get(element.VR)
        if width and element.keyword == "PixelData":
            width = max(width, pixel_bytes)
        if width and element.value:
            element.value = _swapped(element.value, width)


def _swapped(value: bytes, width: int) -> bytes:
    turned = bytearray(value)
    whole = len(value) - len(value) % width
    for offset in range(width):
        turned[offset:whole:width] = value[width - 1 - offset : whole : width]
    return bytes(turned)


def _elements(ds: Dataset) -> Iterator[Any]:
    waiting = [ds]
    while waiting:
        for element in waiting.pop():
            if element.VR == "SQ":
                waiting.extend(element.value)
            else:
                yield element


def _write(ds: Dataset, target: Path, uid: str) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset  # noqa: PLC0415 - as above
    from pydicom.uid import UID  # noqa: PLC0415 - as above

    from dicom_node.part10 import (  # noqa: PLC0415 - as above
        IMPLEMENTATION_CLASS_UID,
        IMPLEMENTATION_VERSION_NAME,
    )

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = UID(uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    fresh = Dataset()  # without a memory of the encoding it had
    fresh.update({element.tag: element for element in ds})
    fresh.file_meta = meta
    fresh.save_as(target, enforce_file_format=True)
