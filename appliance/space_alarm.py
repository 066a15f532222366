"""The alarm that something gives way for want of space (:mod:`appliance.space`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance import alarms
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.space import Grade, grade_of

if TYPE_CHECKING:
    from appliance.node import ClinicalZone

SPACE: Final = "space"  # kind of the alarm
_SUBJECT: Final = "data"


def look(zone: ClinicalZone) -> Grade:
    """Raise the alarm of space once when something gives way, and end it when nothing does."""
    grade = grade_of(zone.settings.dicom, zone.root)
    with reading(zone.engine) as session:
        raised = bool(alarms.still_open(session, SPACE))
    if raised != (grade > Grade.ENOUGH):
        with writing(zone.engine) as session:
            if grade > Grade.ENOUGH:
                alarms.raise_once(session, SPACE, _SUBJECT, {"grade": grade.name.lower()})
            for alarm in alarms.still_open(session, SPACE) if grade is Grade.ENOUGH else ():
                alarms.end(alarm, now())
    return grade
