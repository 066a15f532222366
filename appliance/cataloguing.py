"""What the catalogue knows of an instance: columns filled from its header, at filing or afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs
from appliance.db.clinical import Instance, Result, Series, Study
from appliance.db.engine import reading, writing
from dicom_node.errors import HeaderError
from dicom_node.index import InstanceHeader, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

EDITION: Final = 1  # of the columns; rows of an earlier one are read again
BATCH: Final = 200
UNREADABLE: Final = "catalogue.unreadable"

_OF_STUDY: Final = (
    "patient_name",
    "patient_birth_date",
    "patient_sex",
    "study_date",
    "study_time",
    "accession_number",
    "referring_physician_name",
    "study_description",
)
_OF_SERIES: Final = (
    "modality",
    "body_part_examined",
    "series_number",
    "series_description",
    "protocol_name",
    "station_name",
    "institution_name",
    "manufacturer",
    "manufacturer_model_name",
    "performed_procedure_step_start_date",
    "performed_procedure_step_start_time",
)
_OF_INSTANCE: Final = ("instance_number", "rows", "columns", "bits_allocated", "number_of_frames")
_OF_RESULT: Final = (
    "series_instance_uid",
    "series_number",
    "series_description",
    "modality",
    "transfer_syntax_uid",
    *_OF_INSTANCE,
)
_logger = logs.logger(__name__)


def describe_study(study: Study, header: InstanceHeader) -> None:
    """Fill what no earlier instance of the study said."""
    for name in _OF_STUDY:
        if not getattr(study, name):
            setattr(study, name, getattr(header, name))
    study.dicom_study_id = study.dicom_study_id or header.study_id


def describe_series(series: Series, header: InstanceHeader) -> None:
    """Fill what no earlier instance of the series said."""
    for name in _OF_SERIES:
        if not getattr(series, name):
            setattr(series, name, getattr(header, name))


def describe_instance(instance: Instance, header: InstanceHeader) -> None:
    """Fill the columns of an instance."""
    for name in _OF_INSTANCE:
        setattr(instance, name, getattr(header, name))
    instance.catalogued = EDITION


def fill(zone: ClinicalZone, limit: int = BATCH) -> int:
    """Read the headers of results, and of instances that an earlier edition filed; return of how many."""
    with reading(zone.engine) as session:
        instances = session.execute(
            select(Instance.id, Instance.path).where(Instance.catalogued < EDITION).limit(limit)
        ).all()
        results = session.execute(
            select(Result.id, Result.path).where(Result.series_instance_uid == "").limit(limit)
        ).all()
    read = [(item.id, _read(item.id, zone.root / item.path)) for item in instances]
    of_results = [(item.id, zone.root / item.path) for item in results]
    made = [(row_id, path, _read(row_id, path)) for row_id, path in of_results]
    if not any(header for _, _, header in made) and not read:
        return 0
    with writing(zone.engine) as session:
        for row_id, header in read:
            _fill_instance(session, row_id, header)
        for row_id, path, header in made:
            result = session.get(Result, row_id)
            if result is not None and header is not None:
                for name in _OF_RESULT:
                    setattr(result, name, getattr(header, name))
                result.size_bytes = path.stat().st_size
    return len(read) + len(made)


def _fill_instance(session: Session, row_id: str, header: InstanceHeader | None) -> None:
    instance = session.get(Instance, row_id)
    if instance is None:
        return
    instance.catalogued = EDITION
    if header is not None:
        describe_instance(instance, header)
        describe_series(instance.series, header)
        describe_study(instance.series.study, header)


def _read(row_id: str, path: Path) -> InstanceHeader | None:
    """Return the header, or None: a file that cannot be read leaves its row without a description."""
    try:
        return read_header(path)
    except (HeaderError, OSError) as error:
        _logger.warning(UNREADABLE, row_id=row_id, error_class=type(error).__name__)
        return None
