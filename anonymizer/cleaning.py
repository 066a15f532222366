"""The pixel step of the engine: which instances are looked at for text, and what must be known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anonymizer import burnt_in, keep_list, pixels, regions
from anonymizer.burnt_in import PixelOptions
from anonymizer.elements import Element
from anonymizer.errors import StopError
from anonymizer.options import Option
from anonymizer.verdicts import NONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from anonymizer.areas import Area
    from anonymizer.boxes import Box
    from anonymizer.elements import Item
    from anonymizer.part10 import File
    from anonymizer.profiles import Profile
    from anonymizer.verdicts import Verdict

_IMAGE_TYPE, _BURNED_IN = 0x00080008, 0x00280301
RADIOGRAPHS: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.1{tail}" for tail in ("", ".1", ".1.1", ".2", ".2.1", ".3", ".3.1")
)
_SMALLEST_RADIOGRAPH: Final = 320  # pixels of the long side; detectors and plates have more than thousand
_CAPTURES: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.7{tail}" for tail in ("", ".1", ".2", ".3", ".4"))


@dataclass(frozen=True)
class Pixels:
    """Pixel elements that may leave; ``looked``: text was searched for; ``boxes``: what was masked."""

    elements: Item
    transfer_syntax_uid: str
    looked: bool
    boxes: tuple[Box, ...] = ()


def cleaned(
    file: File,
    item: Item,
    sop_class_uid: str,
    profile: Profile,
    beat: Callable[[], None],
    verdict: Verdict = NONE,
    areas: tuple[Area, ...] = (),
) -> Pixels:
    """Return the pixel data of an instance as its profile wants it.

    Parameters
    ----------
    file, item : File, Item
        The original, and what is left of its data set.
    beat : callable
        Called for each frame that was searched: a sign of life.
    verdict : Verdict
        What a person has decided: a picture that was looked at is searched as well.
    areas : tuple of Area
        What is blacked out besides text.

    Raises
    ------
    StopError
        Of :func:`anonymizer.burnt_in.clean`; code ``ultrasound_without_regions`` where neither the header nor
        the table of machines says which part of an ultrasound picture is the patient's data.
    """
    looks = Option.CLEAN_PIXELS in profile.options or verdict.looked
    if not looks and not areas:
        found = pixels.cleaned(file.item, item, file.transfer_syntax_uid, file.syntax)
        return Pixels(found, file.transfer_syntax_uid, looked=False)
    if not looks:
        blind = PixelOptions(
            detect_text=False,
            regions=(),
            ultrasound_regions=False,
            recompress=profile.recompress,
            areas=areas,
        )
        made = burnt_in.clean(file.item, item, file.transfer_syntax_uid, file.syntax, blind)
        return Pixels(made.elements, made.transfer_syntax_uid, looked=False)
    ultrasound = sop_class_uid in keep_list.ULTRASOUND
    anywhere = verdict.looked or ultrasound or profile.detect == "always"
    anywhere = anywhere or _is_likely(file.item, sop_class_uid)
    options = PixelOptions(
        detect_text=anywhere or _is_radiograph(file, item, sop_class_uid),
        read=not anywhere,
        regions=(*regions.known(), *profile.regions),
        ultrasound_regions=ultrasound,
        recompress=profile.recompress,
        drawn=verdict.boxes,
        areas=areas,
        beat=beat,
    )
    if ultrasound and "ultrasound_without_regions" not in verdict.accepted:
        _refuse_without_regions(file, item, options)
    made = burnt_in.clean(file.item, item, file.transfer_syntax_uid, file.syntax, options)
    elements = dict(made.elements)
    if made.searched and pixels.text_of(item, _BURNED_IN):
        elements[_BURNED_IN] = Element(_BURNED_IN, "CS", b"NO")
    return Pixels(elements, made.transfer_syntax_uid, made.searched, made.boxes)


def _refuse_without_regions(file: File, item: Item, options: PixelOptions) -> None:
    found = pixels.describe(item, file.syntax)
    if regions.of_header(file.item, file.syntax, found.rows, found.columns) is not None:
        return
    if not regions.of_machine(file.item, options.regions, found.rows, found.columns):
        raise StopError(
            "ultrasound_without_regions",
            "SequenceOfUltrasoundRegions (0018,6011): expected regions that fit, or a known machine",
        )


def _is_radiograph(file: File, item: Item, sop_class_uid: str) -> bool:
    """Tell whether an image is a radiograph in which a line of text has room; a thumbnail of one is none."""
    if sop_class_uid not in RADIOGRAPHS:
        return False
    found = pixels.describe(item, file.syntax)
    return max(found.rows, found.columns) >= _SMALLEST_RADIOGRAPH


def _is_likely(item: Item, sop_class_uid: str) -> bool:
    """Tell whether text in the picture is likely: a capture, one that says so, one made of others.

    Radiographs are none of these: what the detector takes for text in them is mostly bone, so that text is
    masked in them where it can be read.
    """
    image_type = pixels.text_of(item, _IMAGE_TYPE).upper().split("\\")
    declared = pixels.text_of(item, _BURNED_IN).upper() == "YES"
    return declared or sop_class_uid in _CAPTURES or image_type[1:2] == ["SECONDARY"]
