"""What the anonymizer cannot judge, and so does not release. No mark in the input makes this check milder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anonymizer import keep_list
from anonymizer.errors import StopError
from anonymizer.pixels import ALL as PIXELS
from anonymizer.pixels import text_of

if TYPE_CHECKING:
    from anonymizer.elements import Item
    from anonymizer.profiles import Profile

_BURNED_IN: Final = 0x00280301
_RECOGNIZABLE: Final = 0x00280302
_IMAGE_TYPE: Final = 0x00080008
_CONVERSION_TYPE: Final = 0x00080064
_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_LABEL_IN_IMAGE: Final = 0x00480010
_GROUPS_OF_PATIENTS: Final = (0x00100026, 0x00100027)
_OVERLAY_POSITION: Final = 0x0102
_OVERLAY_DATA: Final = 0x3000
SCREEN_WORDS: Final = (
    "SCREEN", "CAPTURE", "REPORT", "DOSE_INFO", "DOSE INFO", "DOSEINFO", "SCANNED", "LABEL", "OVERVIEW",
    "PATIENT",
)  # fmt: skip
GREY_CLASSES: Final = tuple(
    f"1.2.840.10008.5.1.4.1.1.{tail}"
    for tail in (
        "1",
        "1.1",
        "1.1.1",
        "1.2",
        "1.2.1",
        "1.3",
        "1.3.1",
        "2",
        "4",
        "12.1",
        "12.2",
        "20",
        "128",
        "481.1",
    )
)
"""Classes whose images have one sample per pixel; a coloured one is a screen."""


def refuse_unjudgeable(
    item: Item, sop_class_uid: str, profile: Profile, accepted: frozenset[str] = frozenset()
) -> None:
    """Stop an instance that may show or hold identity where no attribute rule reaches.

    Parameters
    ----------
    accepted : frozenset of str
        Codes that a person has overruled for this instance.

    Raises
    ------
    StopError
        With the reason's code.
    """
    waiting = keep_list.waits(sop_class_uid, profile)
    if waiting is not None and waiting[0] not in accepted:
        raise StopError(*waiting)
    released = profile.release | accepted
    if "burned_in_annotation" not in released and text_of(item, _BURNED_IN).upper() not in {"", "NO"}:
        raise StopError("burned_in_annotation", "BurnedInAnnotation (0028,0301): expected NO")
    if "recognizable_features" not in released and text_of(item, _RECOGNIZABLE).upper() not in {"", "NO"}:
        raise StopError("recognizable_features", "RecognizableVisualFeatures (0028,0302): expected NO")
    screens = "burnt_in_text_likely" not in released
    if screens and text_of(item, _LABEL_IN_IMAGE).upper() not in {"", "NO"}:
        raise StopError("burnt_in_text_likely", "SpecimenLabelInImage (0048,0010): expected NO")
    if "secondary_capture" not in released and text_of(item, _CONVERSION_TYPE):
        raise StopError("secondary_capture", "ConversionType (0008,0064): the image was captured or scanned")
    if screens and PIXELS & item.keys():
        _refuse_screens(item, sop_class_uid)
    _refuse_embedded_overlays(item)
    if any(tag in item for tag in _GROUPS_OF_PATIENTS):
        raise StopError("several_patients", "the instance belongs to a group of subjects")


def _refuse_screens(item: Item, sop_class_uid: str) -> None:
    image_type = text_of(item, _IMAGE_TYPE).upper()
    if any(word in image_type for word in SCREEN_WORDS):
        raise StopError("burnt_in_text_likely", "ImageType (0008,0008): a screen, report or label")
    if sop_class_uid in GREY_CLASSES:
        photometric = text_of(item, _PHOTOMETRIC)
        if photometric and not photometric.startswith("MONOCHROME"):
            raise StopError(
                "burnt_in_text_likely", "a coloured image in a class of grey ones is likely a screen"
            )


def _refuse_embedded_overlays(item: Item) -> None:
    """Refuse overlay planes that lie in unused bits of the pixels (PS3.5 8.1.2, retired)."""
    planes = {tag & 0xFFFF0000 for tag in item if tag >> 24 == 0x60}
    if any(plane | _OVERLAY_POSITION in item and plane | _OVERLAY_DATA not in item for plane in planes):
        raise StopError("overlay_in_pixels", "an overlay plane lies in the unused bits of the pixel data")
