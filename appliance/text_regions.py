"""Where this hospital's machines write text into their pictures: rows that staff draw.

They stand beside those that come with the product (``anonymizer/tables/regions.json``), have the same form,
and count for one machine and size of picture alone. The profile's hash covers them, so what each instance was
de-identified with can be told from its hash and the ledger.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance.db.clinical import TextRegion
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from anonymizer.profiles import Profile
    from anonymizer.regions import Region
    from appliance.node import ClinicalZone

ADDED: Final = "text_region.added"
REMOVED: Final = "text_region.removed"
MAX_BOXES: Final = 40
MAX_REGIONS: Final = 1000
NOTE_LENGTH: Final = 200


class TextRegionError(ApplianceError):
    """A region that cannot be kept; the text says why."""


@dataclass(frozen=True)
class Machine:
    """What made a picture, and the size of the picture in pixels."""

    modality: str
    manufacturer: str
    model: str
    rows: int
    columns: int
    frames: int = 1


def machine_of(path: Path) -> Machine:
    """Return what made the instance in a Part 10 file, as de-identification will read it.

    Raises
    ------
    TextRegionError
        If it holds no picture, or cannot be read.
    """
    from anonymizer import part10, pixels, regions  # noqa: PLC0415 - heavy, and the panel loads it rarely
    from anonymizer.errors import AnonymizerError  # noqa: PLC0415 - as above
    from anonymizer.mapping import mapped  # noqa: PLC0415 - as above

    try:
        with mapped(path) as content:
            file = part10.read(content)
            if not pixels.ALL & file.item.keys():
                raise TextRegionError("the instance: expected one with a picture")
            found = pixels.describe(file.item, file.syntax)
            names = regions.names_of(file.item)
            del file
    except (AnonymizerError, OSError) as error:
        raise TextRegionError(f"the instance cannot be read as a picture: {type(error).__name__}") from error
    return Machine(*names, found.rows, found.columns, found.frames)


def listed(session: Session) -> list[TextRegion]:
    """Return the rows that staff drew, the newest first."""
    return list(session.scalars(select(TextRegion).order_by(TextRegion.created_at.desc(), TextRegion.id)))


def bundled() -> tuple[Region, ...]:
    """Return the rows that come with the product."""
    from anonymizer import regions  # noqa: PLC0415 - see machine_of

    return regions.known()


def own(session: Session) -> tuple[Region, ...]:
    """Return the rows that staff drew, as the anonymizer takes them, in the order of their ids."""
    from anonymizer import regions  # noqa: PLC0415 - see machine_of

    rows = session.scalars(select(TextRegion).order_by(TextRegion.id))
    return regions.parse({"rows": [_content(row) for row in rows]})


def fitting(session: Session, machine: Machine) -> tuple[Region, ...]:
    """Return all rows, of the product and of staff, that count for a machine."""
    names = (machine.modality, machine.manufacturer, machine.model)
    known = (*bundled(), *own(session))
    return tuple(region for region in known if region.fits(names, machine.rows, machine.columns))


def profile_in_force(zone: ClinicalZone) -> Profile:
    """Return the node's profile with the rows that staff drew; raises ProfileError like ``load_profile``."""
    with reading(zone.engine) as session:
        return _profile(zone, session)


def are_used(zone: ClinicalZone) -> bool:
    """Whether the node's profile cleans pixels; one that cannot be loaded releases nothing."""
    from anonymizer.errors import ProfileError  # noqa: PLC0415 - see machine_of
    from anonymizer.options import Option  # noqa: PLC0415 - as above
    from anonymizer.profiles import load_profile  # noqa: PLC0415 - as above

    try:
        return Option.CLEAN_PIXELS in load_profile(zone.settings.deidentification.profile).options
    except ProfileError:
        return False


def _profile(zone: ClinicalZone, session: Session) -> Profile:
    from anonymizer.profiles import load_profile  # noqa: PLC0415 - see machine_of

    return replace(load_profile(zone.settings.deidentification.profile), regions=own(session))


def add(
    zone: ClinicalZone, machine: Machine, boxes: Sequence[Sequence[int]], note: str, *, actor: str
) -> TextRegion:
    """Keep where a machine writes text; recorded in the ledger, with the profile's hash from now on.

    Parameters
    ----------
    zone : ClinicalZone
    machine : Machine
        Must say who made it and which model it is: an empty name would fit every machine.
    boxes : sequence of sequence of int
        Left, top, right, bottom in pixels, right and bottom outside; 1 to 40, within the picture.
    note : str
        Where this is known from; at most 200 characters.
    actor : str
        Row id of a user.

    Raises
    ------
    TextRegionError
        If a machine's name is missing, or a box is none; says which.
    ProfileError
        If the profile that is set cannot be loaded.
    """
    _check_machine(machine)
    _check_boxes(machine, boxes)
    if len(note) > NOTE_LENGTH or not note.isprintable():
        raise TextRegionError(f"note: expected at most {NOTE_LENGTH} printable characters")
    with writing(zone.engine) as session:
        if (session.scalar(select(func.count()).select_from(TextRegion)) or 0) >= MAX_REGIONS:
            raise TextRegionError(f"expected at most {MAX_REGIONS} regions; remove what is not needed")
        row = TextRegion(
            modality=machine.modality,
            manufacturer=machine.manufacturer,
            model=machine.model,
            rows=machine.rows,
            columns=machine.columns,
            boxes=[list(box) for box in boxes],
            note=note.strip(),
            created_by=actor,
        )
        session.add(row)
        session.flush()
        _record(zone, session, ADDED, row, actor)
    return row


def remove(zone: ClinicalZone, region_id: str, *, actor: str) -> None:
    """Forget a row that staff drew; recorded. Raises TextRegionError when it is gone already."""
    with writing(zone.engine) as session:
        row = session.get(TextRegion, region_id)
        if row is None:
            raise TextRegionError("the region: it is gone already")
        session.delete(row)
        session.flush()
        _record(zone, session, REMOVED, row, actor)


def _record(zone: ClinicalZone, session: Session, kind: str, row: TextRegion, actor: str) -> None:
    body = {
        "boxes": len(row.boxes),
        "content": sha256(json.dumps(_content(row), sort_keys=True).encode()).hexdigest(),
        "profile": _profile(zone, session).hash,
    }
    zone.ledger.append(session, kind=kind, subject_id=row.id, body=body, actor=actor)


def _content(row: TextRegion) -> dict[str, object]:
    return {
        "modality": row.modality,
        "manufacturer": row.manufacturer,
        "model": row.model,
        "rows": row.rows,
        "columns": row.columns,
        "boxes": row.boxes,
        "source": row.note or "drawn in the panel",
    }


def _check_machine(machine: Machine) -> None:
    fields = (
        ("Modality (0008,0060)", machine.modality, 16),
        ("Manufacturer (0008,0070)", machine.manufacturer, 64),
        ("ManufacturerModelName (0008,1090)", machine.model, 64),
    )
    for name, value, length in fields:
        if not any(letter.isalnum() for letter in value) or len(value) > length:
            raise TextRegionError(
                f"{name}: expected a name in the instance, or the region would count for other machines"
            )


def _check_boxes(machine: Machine, boxes: Sequence[Sequence[int]]) -> None:
    if not 1 <= len(boxes) <= MAX_BOXES:
        raise TextRegionError(f"boxes: expected 1 to {MAX_BOXES}")
    for number, box in enumerate(boxes, 1):
        if len(box) != 4 or any(type(edge) is not int for edge in box):
            raise TextRegionError(f"box {number}: expected left, top, right and bottom in whole pixels")
        left, top, right, bottom = box
        if not (0 <= left < right <= machine.columns and 0 <= top < bottom <= machine.rows):
            raise TextRegionError(
                f"box {number}: expected it inside the picture of {machine.columns} x {machine.rows} pixels,"
                " with left below right and top below bottom"
            )
