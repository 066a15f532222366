"""A stored instance in the DICOM JSON model, its large values by address (PS3.18 10.4.4, annex F)."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, Final

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset

BULK_FROM_BYTES: Final = 1024
MAX_DEPTH: Final = 32
_DEFER_BYTES: Final = 1 << 16
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_STEP: Final = re.compile(r"[0-9A-Fa-f]{8}\Z")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,6}\Z")


class MetadataError(DICOMNodeError):
    """An instance, or a value in it, that cannot be read; the text says why, without a value."""


def describe(path: Path, bulk_url: str) -> dict[str, Any]:
    """Return the attributes of a Part 10 file.

    An attribute whose value cannot be read as its VR says is there without one.

    Parameters
    ----------
    path : Path
    bulk_url : str
        Address below which :func:`bulk` finds the values that are left out here, by their path.

    Raises
    ------
    MetadataError
        When the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they name values
        try:
            return _attributes(_read(path), f"{bulk_url}/", 0)
        except (MetadataError, FileNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001 -- bytes as they were received, whatever those are
            raise MetadataError(f"the data set cannot be read: {type(error).__name__}") from None


def bulk(path: Path, place: str) -> bytes:
    """Return one binary value of a Part 10 file.

    Parameters
    ----------
    path : Path
    place : str
        Tags of eight hexadecimal digits and numbers of items, from 1, by slashes.

    Raises
    ------
    MetadataError
        When there is no such value.
    """
    steps = place.split("/")
    tags, numbers = steps[::2], steps[1::2]
    shaped = len(tags) == len(numbers) + 1 <= MAX_DEPTH
    if not shaped or not all(map(_STEP.match, tags)) or not all(map(_NUMBER.match, numbers)):
        raise MetadataError("expected tags and numbers of items, by slashes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds = _read(path)
            for tag, number in zip(tags, numbers, strict=False):
                ds = ds[int(tag, 16)].value[int(number) - 1]
            value = ds[int(tags[-1], 16)].value
        except FileNotFoundError:
            raise
        except Exception:  # noqa: BLE001 -- no such place, or bytes as they were received
            raise MetadataError("there is no such value") from None
    if not isinstance(value, bytes):
        raise MetadataError("expected the place of a binary value")
    return value


def _read(path: Path) -> Dataset:
    from pydicom import dcmread  # noqa: PLC0415 - heavy, for the first request

    return dcmread(path, defer_size=_DEFER_BYTES)


def _attributes(ds: Dataset, base: str, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise MetadataError("sequences nested too deep")
    from dicom_node.dicomweb import values  # noqa: PLC0415 - as above

    found = {}
    for tag in sorted(ds.keys()):
        if tag.element == 0 or tag.group == 0x0002:  # a group's length says nothing in this form
            continue
        name = f"{tag:08X}"
        element: Any = ds.get_item(tag, keep_deferred=True)
        found[name] = (
            values.plain(element)
            or _deferred(ds, element, f"{base}{name}")
            or _attribute(ds, tag, f"{base}{name}", depth)
        )
    if "00080005" in found:
        found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return found


def _deferred(ds: Dataset, element: RawDataElement | DataElement, url: str) -> dict[str, Any] | None:
    """Return where a value is that was left in the file, so that it need not be read."""
    left = element.value is None and bool(getattr(element, "length", 0)) and hasattr(element, "value_tell")
    if not left:
        return None
    vr = str(element.VR or _dictionary_vr(ds, element.tag))
    return {"vr": vr, "BulkDataURI": url} if vr in _BINARY else None


def _dictionary_vr(ds: Dataset, tag: Any) -> str:
    from pydicom.datadict import dictionary_has_tag, dictionary_VR  # noqa: PLC0415 - as above

    if not dictionary_has_tag(tag):
        return "UN"
    vr = dictionary_VR(tag)
    return vr if len(vr) == 2 else ("OW" if ds.get("BitsAllocated") != 8 else "OB")


def _attribute(ds: Dataset, tag: Any, url: str, depth: int) -> dict[str, Any]:
    try:
        element = ds[tag]
    except Exception:  # noqa: BLE001 -- a value that is not of its VR
        return {"vr": "UN"}
    if element.VR == "SQ":
        items = [_attributes(item, f"{url}/{number}/", depth + 1) for number, item in enumerate(element, 1)]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if element.VR in _BINARY and len(element.value or b"") > BULK_FROM_BYTES:
        return {"vr": element.VR, "BulkDataURI": url}
    try:
        return _with_nulls(element.to_json_dict(None, 0))
    except Exception:  # noqa: BLE001 -- as above
        return {"vr": element.VR}


def _with_nulls(described: dict[str, Any]) -> dict[str, Any]:
    """Return an attribute whose empty values among others are null (annex F.2.5)."""
    if "Value" in described:
        described["Value"] = [None if value == "" else value for value in described["Value"]]
    return described
