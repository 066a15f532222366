"""What the node's rows say of a study's patient: what one instance names, no text of another may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.clinical import Series, Study

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Said = tuple[tuple[int, str, str], ...]
"""Tag, VR and text of attributes."""
_OF_STUDY: Final = (
    (0x00100010, "PN", "patient_name"),
    (0x00100020, "LO", "patient_id"),
    (0x00100030, "DA", "patient_birth_date"),
    (0x00080050, "SH", "accession_number"),
    (0x00080090, "PN", "referring_physician_name"),
    (0x00200010, "SH", "dicom_study_id"),
)
_OF_SERIES: Final = ((0x00080080, "LO", "institution_name"), (0x00081010, "SH", "station_name"))


def of_study(session: Session, study_id: str) -> Said:
    """Return what identifies in the rows of a study and its series, empty texts left out."""
    study = session.get(Study, study_id)
    if study is None:
        return ()
    found = [(tag, vr, str(getattr(study, name))) for tag, vr, name in _OF_STUDY]
    for series in session.scalars(select(Series).where(Series.study_id == study_id).order_by(Series.id)):
        found += [(tag, vr, str(getattr(series, name))) for tag, vr, name in _OF_SERIES]
    return tuple(dict.fromkeys(value for value in found if value[2]))
