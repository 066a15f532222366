"""Pictures: a result's Secondary Capture as PNG, and what a trial of a quarantined instance drew."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from appliance.db.clinical import Decision, Result
from appliance.db.engine import reading
from appliance.errors import ApplianceError
from appliance.review import folders

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

SMALL_WIDTH: Final = 112
MAX_PIXELS: Final = 40_000_000
SECONDARY_CAPTURE: Final = "sc"


class PictureError(ApplianceError):
    """A result has no picture that can be shown."""


def png(zone: ClinicalZone, result_id: str, *, small: bool = False) -> bytes:
    """Render the picture of a result.

    Parameters
    ----------
    zone : ClinicalZone
    result_id : str
    small : bool
        For a list.

    Raises
    ------
    PictureError
        If there is no such result, it has no picture, or the file is not what it should be.
    """
    with reading(zone.engine) as session:
        result = session.get(Result, result_id)
    if result is None or result.kind != SECONDARY_CAPTURE:
        raise PictureError("result: expected one with a picture")
    path = (zone.root / result.path).resolve()
    if not path.is_relative_to(zone.root.resolve()) or not path.is_file():
        raise PictureError("result: its file is gone")
    return _thumbnail(path) if small else render(path)


def of_trial(zone: ClinicalZone, item_id: str, decision_id: str, name: str) -> bytes | None:
    """Return a picture of a trial on an item (``before-0``, ``after-0``); None where there is none."""
    with reading(zone.engine) as session:
        row = session.get(Decision, decision_id)
    if row is None or row.quarantine_item_id != item_id:
        return None
    return folders.picture_of(zone.root, row.study_id, row.id, name)


@lru_cache(maxsize=256)
def _thumbnail(path: Path) -> bytes:
    """Keep small pictures: an instance that was made never changes, and lists show them again and again."""
    return render(path, SMALL_WIDTH)


def render(path: Path, width: int | None = None) -> bytes:
    """Render an 8-bit grayscale or RGB instance as PNG, ``width`` pixels wide at most.

    Raises
    ------
    PictureError
        If the pixel data are of another kind.
    """
    from PIL import Image  # noqa: PLC0415 - loaded with the first picture that someone opens
    from pydicom import dcmread  # noqa: PLC0415 - as above
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415 - as above

    ds = dcmread(path)
    if int(ds.Rows) * int(ds.Columns) > MAX_PIXELS or int(ds.BitsAllocated) != 8:
        raise PictureError("picture: expected 8 bits a sample and at most 40 million pixels")
    if ds.PhotometricInterpretation not in {"RGB", "MONOCHROME2"}:
        raise PictureError("picture: expected RGB or MONOCHROME2")
    image = Image.fromarray(pixel_array(ds, index=0))
    if width is not None and image.width > width:
        image = image.resize(
            (width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS
        )
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
