"""Pictures as PNG: of results that this node made, frames of what it received, what a trial drew."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from appliance.db.clinical import Decision, Instance, Result
from appliance.db.engine import reading
from appliance.errors import ApplianceError
from appliance.review import folders

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

SMALL_WIDTH: Final = 112
MAX_PIXELS: Final = 40_000_000
MAX_SIDE: Final = 2048  # of a frame as it is shown; a longer one is made smaller
SECONDARY_CAPTURE: Final = "sc"


class PictureError(ApplianceError):
    """A result or an instance has no picture that can be shown."""


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
    path = _file(zone, result.path)
    return _thumbnail(path) if small else render(path)


def of_trial(zone: ClinicalZone, item_id: str, decision_id: str, name: str) -> bytes | None:
    """Return a picture of a trial on an item (``before-0``, ``after-0``); None where there is none."""
    with reading(zone.engine) as session:
        row = session.get(Decision, decision_id)
    if row is None or row.quarantine_item_id != item_id:
        return None
    return folders.picture_of(zone.root, row.study_id, row.id, name)


def frame(zone: ClinicalZone, instance_id: str, number: int) -> bytes:
    """Render a frame of a received instance, with all that is written in it.

    Parameters
    ----------
    zone : ClinicalZone
    instance_id : str
        Row id.
    number : int
        Of the frame, counted from 1.

    Raises
    ------
    PictureError
        If there is no such instance or frame, or it cannot be decoded.
    """
    from dicom_node.images import Image, ImageError, Look  # noqa: PLC0415 - heavy, for the first picture

    with reading(zone.engine) as session:
        instance = session.get(Instance, instance_id)
    if instance is None:
        raise PictureError("instance: expected one that is stored here")
    too_long = max(instance.rows or 0, instance.columns or 0) > MAX_SIDE
    look = Look(box=(MAX_SIDE, MAX_SIDE) if too_long else None, kind="image/png")
    try:
        return Image(_file(zone, instance.path)).rendered(number, look)
    except (ImageError, FileNotFoundError) as error:
        raise PictureError(f"instance: {error}") from error


def _file(zone: ClinicalZone, name: str) -> Path:
    path = (zone.root / name).resolve()
    if not path.is_relative_to(zone.root.resolve()) or not path.is_file():
        raise PictureError("its file is gone")
    return path


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
