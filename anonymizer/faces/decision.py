"""Which instances a face is removed from, which are left alone, and which wait for a person.

BodyPartExamined (0018,0015) and AnatomicRegionSequence (0008,2218) decide, the former by the terms of PS3.16
Annex L. What names another region is left alone. What names the head or the neck, or nothing that is known,
leaves only with its face removed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from anonymizer import pixels, rules
from anonymizer.errors import StopError
from anonymizer.faces.planes import NOT_REMOVED, sequence
from anonymizer.options import Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.areas import Area
    from anonymizer.elements import Item
    from anonymizer.part10 import File
    from anonymizer.profiles import Profile

_IMAGES: Final = "1.2.840.10008.5.1.4.1.1."
TOMOGRAPHY: Final = frozenset(f"{_IMAGES}{tail}" for tail in ("2", "2.1", "2.2"))
CLEANED: Final = TOMOGRAPHY | {f"{_IMAGES}{tail}" for tail in ("4", "4.1", "4.4")}
"""CT and MR: classes that faces are removed from."""
_WAITING: Final = frozenset(
    f"{_IMAGES}{tail}"
    for tail in (
        "4.3", "13.1.1", "13.1.2", "30", "66.4", "66.5", "66.7", "66.8", "128", "128.1", "130", "481.3",
    )
)  # fmt: skip
"""Classes that may hold the form of a head, and that no face is removed from."""
_BODY_PART, _REGION, _CODE = 0x00180015, 0x00082218, 0x00080100
_RECOGNIZABLE: Final = 0x00280302
_SHARED, _PER_FRAME, _FRAME_ANATOMY = 0x52009229, 0x52009230, 0x00209071
_HEAD_PARTS: Final = (
    "HEAD", "SKULL", "BRAIN", "FACE", "FACIAL", "ORBIT", "NOSE", "NASAL", "SINUS", "JAW", "MANDIB", "MAXILL",
    "ZYGOM", "NECK", "CSPINE", "CERVICAL", "BODY", "CAROTID", "CRANI", "CEREB", "TEETH", "TOOTH", "PITUIT",
    "TMJ", "WILLIS", "TEMPOR", "SELLA", "PHARYN", "TONGUE", "MOUTH", "PAROTID", "SALIVAR", "VENTRICLE",
    "BASILAR", "OPTIC", "LACRIM", "SCALP", "CHEEK", "CHIN", "LIP", "PALATE", "SUPRAORB", "THYROID", "CLIVUS",
)  # fmt: skip
_HEAD_WORDS: Final = frozenset({"EAR", "EYE", "IAC", "ACA", "MCA", "PCA", "ICA", "ECA", "OTHER", "SPINE"})
_NOT_HEAD: Final = frozenset({"LVENTRICLE", "RVENTRICLE", "LEFTVENTRICLE", "RIGHTVENTRICLE", "CAROTIDBODY"})
# SNOMED CT and the older SRT identifiers of regions (PS3.16 CID 4, 4030, 4031) that are no head and no neck.
_OTHER_REGIONS: Final = frozenset({
    "818981001", "113345001", "T-D4000", "51185008", "816094009", "T-D3000", "12921003", "816092008",
    "T-D6000", "76752008", "T-04000", "80891009", "T-32000", "64033007", "T-71000", "10200004", "T-62000",
    "39607008", "T-28000", "53120007", "T-D8000", "61685007", "T-D9000", "72696002", "T-D9200", "16982005",
    "T-D2220", "29836001", "T-D2500", "70258002", "T-15750", "56459004", "T-D9700", "85562004", "T-D8700",
    "41216001", "T-9200B", "181422007", "122496007", "T-11503", "122495006", "T-11502", "416949008",
    "416775004", "416550000", "R-FAB55", "R-FAB56", "R-FAB57",
})  # fmt: skip


class FaceFinder(Protocol):
    """Finds the face in an instance by its series."""

    def __call__(self, file: File) -> tuple[Area, ...]:
        """Return what is removed, by frame; StopError of code ``face_not_removed`` where that is unknown."""
        ...


def face_areas(file: File, profile: Profile, finder: FaceFinder | None) -> tuple[Area, ...] | None:
    """Return what is removed of an instance, or None when it is not an instance to remove a face from.

    Raises
    ------
    StopError
        Code ``face_not_removed`` when the instance may show a face and none can be removed.
    """
    if Option.CLEAN_FACES not in profile.options or file.sop_class_uid not in CLEANED | _WAITING:
        return None
    if _names_another_region(file.item) and pixels.text_of(file.item, _RECOGNIZABLE).upper() != "YES":
        return None
    if file.sop_class_uid in _WAITING:
        raise StopError(NOT_REMOVED, "a class that may hold the form of a head; expected CT or MR images")
    if finder is None:
        raise StopError(NOT_REMOVED, "an instance by itself; expected it with all of its series")
    return finder(file)


def _names_another_region(item: Item) -> bool:
    """Tell whether all that is said of the region is said of one that is neither head nor neck."""
    said: list[bool] = []
    part = pixels.text_of(item, _BODY_PART)
    if part:
        said.append(_is_another_part(part))
    said += [code in _OTHER_REGIONS for code in _region_codes(item)]
    return bool(said) and all(said)


def _is_another_part(part: str) -> bool:
    word = re.sub(r"[^A-Z0-9]", "", part.upper())
    if word in _NOT_HEAD:
        return True
    if word in _HEAD_WORDS or any(each in word for each in _HEAD_PARTS):
        return False
    return word in rules.read_table("body_parts.json")["terms"]


def _region_codes(item: Item) -> Iterator[str]:
    places = [item]
    for groups in (_SHARED, _PER_FRAME):
        for group in sequence(item, groups):
            places += sequence(group, _FRAME_ANATOMY)
    for place in places:
        for region in sequence(place, _REGION):
            yield pixels.text_of(region, _CODE)
