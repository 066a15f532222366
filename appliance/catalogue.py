"""The catalogue of what is stored and of what models made of it, for C-FIND, QIDO-RS and retrieval.

Received instances and results are two tables; each answer lists the received ones first. Results of shadow
models, and those that a later revision superseded, are not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Select, and_, distinct, false, func, or_, select

from appliance import matching
from appliance.db.clinical import Instance, Result, Series, Study
from appliance.db.engine import reading
from dicom_node.query import MATCHED, Level, Match, Query, StoredInstance, check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import InstrumentedAttribute, Session

    from appliance.node import ClinicalZone

    Statement = Select[*tuple[Any, ...]]
    Columns = Mapping[str, InstrumentedAttribute[Any]]

_CHUNK: Final = 500  # rows whose counts are asked for at once
_VISIBLE: Final = and_(
    Result.shadow.is_(False), Result.superseded.is_(False), Result.series_instance_uid != ""
)

_PATIENT: Final[Columns] = {
    "PatientID": Study.patient_id,
    "IssuerOfPatientID": Study.issuer_of_patient_id,
    "PatientName": Study.patient_name,
    "PatientBirthDate": Study.patient_birth_date,
    "PatientSex": Study.patient_sex,
}
_STUDY: Final[Columns] = {
    **_PATIENT,
    "StudyInstanceUID": Study.study_instance_uid,
    "StudyDate": Study.study_date,
    "StudyTime": Study.study_time,
    "AccessionNumber": Study.accession_number,
    "StudyID": Study.dicom_study_id,
    "StudyDescription": Study.study_description,
    "ReferringPhysicianName": Study.referring_physician_name,
    "ModalitiesInStudy": Study.modalities,
}
_SERIES: Final[Columns] = {
    "SeriesInstanceUID": Series.series_instance_uid,
    "Modality": Series.modality,
    "SeriesNumber": Series.series_number,
    "SeriesDescription": Series.series_description,
    "BodyPartExamined": Series.body_part_examined,
    "ProtocolName": Series.protocol_name,
    "StationName": Series.station_name,
    "InstitutionName": Series.institution_name,
    "Manufacturer": Series.manufacturer,
    "ManufacturerModelName": Series.manufacturer_model_name,
    "PerformedProcedureStepStartDate": Series.performed_procedure_step_start_date,
    "PerformedProcedureStepStartTime": Series.performed_procedure_step_start_time,
}
_IMAGE: Final[Columns] = {
    "SOPInstanceUID": Instance.sop_instance_uid,
    "SOPClassUID": Instance.sop_class_uid,
    "InstanceNumber": Instance.instance_number,
    "Rows": Instance.rows,
    "Columns": Instance.columns,
    "BitsAllocated": Instance.bits_allocated,
    "NumberOfFrames": Instance.number_of_frames,
    "AvailableTransferSyntaxUID": Instance.transfer_syntax_uid,
}
_RESULT_SERIES: Final[Columns] = {
    "SeriesInstanceUID": Result.series_instance_uid,
    "Modality": Result.modality,
    "SeriesNumber": Result.series_number,
    "SeriesDescription": Result.series_description,
}
_RESULT_IMAGE: Final[Columns] = {
    "SOPInstanceUID": Result.sop_instance_uid,
    "SOPClassUID": Result.sop_class_uid,
    "InstanceNumber": Result.instance_number,
    "Rows": Result.rows,
    "Columns": Result.columns,
    "BitsAllocated": Result.bits_allocated,
    "NumberOfFrames": Result.number_of_frames,
    "AvailableTransferSyntaxUID": Result.transfer_syntax_uid,
}


class DatabaseCatalogue:
    """The catalogue of a clinical zone; implements :class:`dicom_node.ports.Catalogue`."""

    def __init__(self, zone: ClinicalZone) -> None:
        self._engine = zone.engine
        self._root = zone.root

    def find(self, query: Query) -> list[dict[str, str]]:
        """Return one mapping for each match, in a fixed order: studies from the latest.

        Raises
        ------
        QueryError
        """
        check(query)
        with reading(self._engine) as session:
            return _FIND[query.level](session, query)

    def count(self, query: Query) -> int:
        """Return how many match, whatever limit and offset say; raises as :meth:`find`."""
        check(query)
        with reading(self._engine) as session:
            return sum(_size(session, part) for part in _parts(session, query))

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        """Return the instances of a study, of one series of it, or the one instance, in their order."""
        match = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": sop_uid}
        with reading(self._engine) as session:
            found: list[StoredInstance] = []
            for of_results, table in ((False, Instance), (True, Result)):
                series = _columns(Level.SERIES, of_results)["SeriesInstanceUID"]
                statement = _joined(
                    select(
                        table.id,
                        table.path,
                        Study.study_instance_uid,
                        series,
                        table.sop_instance_uid,
                        table.sop_class_uid,
                        table.transfer_syntax_uid,
                        table.size_bytes,
                        table.number_of_frames,
                    ),
                    Level.IMAGE,
                    of_results=of_results,
                ).where(*_conditions(session, Query(Level.IMAGE, match), of_results=of_results))
                rows = session.execute(statement.order_by(*_order(Level.IMAGE, of_results, ordered=True)))
                found.extend(StoredInstance(row[0], self._root / row[1], *row[2:]) for row in rows)
            return found


def _columns(level: Level, of_results: bool) -> Columns:
    series, image = (_RESULT_SERIES, _RESULT_IMAGE) if of_results else (_SERIES, _IMAGE)
    if level is Level.PATIENT:
        return _PATIENT
    return {
        **_STUDY,
        **(series if level in {Level.SERIES, Level.IMAGE} else {}),
        **(image if level is Level.IMAGE else {}),
    }


def _conditions(session: Session, query: Query, *, of_results: bool = False) -> list[ColumnElement[bool]]:
    """Return what the rows must fulfil; a key that results do not have leaves them out."""
    columns, kinds = _columns(query.level, of_results), MATCHED[query.level]
    dialect = session.get_bind().dialect.name
    found: list[ColumnElement[bool]] = []
    for keyword, value in query.match.items():
        if kinds[keyword] is Match.ANY_OF:
            found.extend(_any_modality(dialect, value))
        elif keyword in columns:
            found.extend(matching.condition(dialect, columns[keyword], keyword, kinds[keyword], value))
        elif value.strip() not in {"", "*"}:
            found.append(false())
    return [*found, _VISIBLE] if of_results else found


def _any_modality(dialect: str, value: str) -> list[ColumnElement[bool]]:
    wanted = [part for part in value.replace(",", "\\").split("\\") if part.strip()]
    if not wanted or any(part.strip() == "*" for part in wanted):
        return []
    alternatives = []
    for part in wanted:
        for table, owner, more in (
            (Series, Series.study_id, ()),
            (Result, Result.study_id, (_VISIBLE,)),
        ):
            matched = matching.condition(dialect, table.modality, "ModalitiesInStudy", Match.TEXT, part)
            alternatives.append(select(table.id).where(owner == Study.id, *matched, *more).exists())
    return [or_(*alternatives)]


def _joined(statement: Statement, level: Level, *, of_results: bool) -> Statement:
    if of_results:
        return statement.select_from(Result).join(Study, Study.id == Result.study_id)
    if level is Level.IMAGE:
        joined = statement.select_from(Instance).join(Series, Series.id == Instance.series_id)
    else:
        joined = statement.select_from(Series)
    return joined.join(Study, Study.id == Series.study_id)


def _order(level: Level, of_results: bool, *, ordered: bool) -> list[ColumnElement[Any]]:
    """Order as people count, where one study or series is asked for; else as the database finds rows."""
    table: Any = Result if of_results else (Instance if level is Level.IMAGE else Series)
    if not ordered:
        return [table.id]
    series: Any = Result if of_results else Series
    number: list[ColumnElement[Any]] = [func.length(series.series_number), series.series_number]
    number.append(series.series_instance_uid)
    if level is Level.IMAGE:
        number.extend((func.length(table.instance_number), table.instance_number))
    return [*number, table.id]


def _parts(session: Session, query: Query) -> list[Statement]:
    """Return the statements whose rows, one after the other, are the answers; their columns by keyword."""
    level = query.level
    if level in {Level.PATIENT, Level.STUDY}:
        return [_studies(session, query)]
    ordered = bool(query.match.get("StudyInstanceUID") or query.match.get("SeriesInstanceUID"))
    parts = []
    for of_results in (False, True):
        columns = _columns(level, of_results)
        if of_results and level is Level.SERIES:
            parts.append(_result_series(session, query))
            continue
        key: Any = Result.id if of_results else (Instance.id if level is Level.IMAGE else Series.id)
        statement = select(key.label("key"), *(column.label(keyword) for keyword, column in columns.items()))
        joined = _joined(statement, level, of_results=of_results)
        conditions = _conditions(session, query, of_results=of_results)
        parts.append(joined.where(*conditions).order_by(*_order(level, of_results, ordered=ordered)))
    return parts


def _studies(session: Session, query: Query) -> Statement:
    conditions = _conditions(session, query)
    if query.level is Level.STUDY:
        columns = (column.label(keyword) for keyword, column in _STUDY.items())
        statement = select(Study.id.label("key"), Study.instance_count.label("stored"), *columns)
        return statement.where(*conditions).order_by(Study.study_date.desc(), Study.id)
    keys = (Study.patient_id, Study.issuer_of_patient_id)
    return (
        select(
            Study.patient_id.label("PatientID"),
            Study.issuer_of_patient_id.label("IssuerOfPatientID"),
            func.max(Study.patient_name).label("PatientName"),
            func.max(Study.patient_birth_date).label("PatientBirthDate"),
            func.max(Study.patient_sex).label("PatientSex"),
            func.count().label("NumberOfPatientRelatedStudies"),
        )
        .where(*conditions)
        .group_by(*keys)
        .order_by(*keys)
    )


def _result_series(session: Session, query: Query) -> Statement:
    grouped = {Result.study_id, Result.series_instance_uid}
    columns = [
        (column if column in grouped else func.max(column)).label(keyword)
        for keyword, column in _columns(Level.SERIES, of_results=True).items()
    ]
    statement = select(func.min(Result.id).label("key"), func.count().label("results"), *columns)
    return (
        _joined(statement, Level.SERIES, of_results=True)
        .where(*_conditions(session, query, of_results=True))
        .group_by(Result.study_id, Result.series_instance_uid)
        .order_by(Result.study_id, Result.series_instance_uid)
    )


def _page(session: Session, query: Query) -> list[Row[Any]]:
    """Take the wanted rows from the parts, as if they were one list."""
    rows: list[Row[Any]] = []
    skip = query.offset
    parts = _parts(session, query)
    for number, part in enumerate(parts):
        wanted = query.limit - len(rows) if query.limit else None
        if wanted == 0:
            break
        taken = session.execute(part.offset(skip).limit(wanted)).all()
        rows.extend(taken)
        if skip and number + 1 < len(parts):
            skip = 0 if taken else max(skip - _size(session, part), 0)
    return rows


def _size(session: Session, part: Statement) -> int:
    return session.scalar(select(func.count()).select_from(part.order_by(None).subquery())) or 0


def _texts(row: Row[Any], keywords: Sequence[str]) -> dict[str, str]:
    found = row._mapping  # noqa: SLF001 -- SQLAlchemy's public name for it
    return {key: "" if found[key] is None else str(found[key]) for key in keywords if key in found}


def _find_patients(session: Session, query: Query) -> list[dict[str, str]]:
    keywords = (*_PATIENT, "NumberOfPatientRelatedStudies")
    return [_texts(row, keywords) for row in _page(session, query)]


def _find_studies(session: Session, query: Query) -> list[dict[str, str]]:
    rows = _page(session, query)
    ids = [row.key for row in rows]
    series = _counted(session, Series.study_id, func.count(), ids)
    results = _counted(session, Result.study_id, func.count(), ids, _VISIBLE)
    result_series = _counted(
        session, Result.study_id, func.count(distinct(Result.series_instance_uid)), ids, _VISIBLE
    )
    modalities = _result_modalities(session, [key for key in ids if key in results])
    answers = []
    for row in rows:
        answer = _texts(row, tuple(_STUDY))
        both = {*answer["ModalitiesInStudy"].split("\\"), *modalities.get(row.key, ())} - {""}
        answer["ModalitiesInStudy"] = "\\".join(sorted(both))
        answer["NumberOfStudyRelatedSeries"] = str(series.get(row.key, 0) + result_series.get(row.key, 0))
        answer["NumberOfStudyRelatedInstances"] = str(row.stored + results.get(row.key, 0))
        answers.append(answer)
    return answers


def _find_series(session: Session, query: Query) -> list[dict[str, str]]:
    rows = _page(session, query)
    stored = [row.key for row in rows if not hasattr(row, "results")]
    counts = _counted(session, Instance.series_id, func.count(), stored)
    answers = []
    for row in rows:
        number = row.results if hasattr(row, "results") else counts.get(row.key, 0)
        answer = _texts(row, (*_STUDY, *_SERIES))
        answers.append({**answer, "NumberOfSeriesRelatedInstances": str(number)})
    return answers


def _find_instances(session: Session, query: Query) -> list[dict[str, str]]:
    return [_texts(row, (*_STUDY, *_SERIES, *_IMAGE)) for row in _page(session, query)]


def _counted(
    session: Session,
    owner: InstrumentedAttribute[str],
    what: ColumnElement[int],
    ids: Sequence[str],
    *conditions: ColumnElement[bool],
) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(ids), _CHUNK):
        part = select(owner, what).where(owner.in_(ids[start : start + _CHUNK]), *conditions).group_by(owner)
        found.update((row[0], row[1]) for row in session.execute(part))
    return found


def _result_modalities(session: Session, ids: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        statement = select(Result.study_id, Result.modality).where(Result.study_id.in_(chunk), _VISIBLE)
        for study_id, modality in session.execute(statement.distinct()):
            found.setdefault(study_id, set()).add(modality)
    return found


_FIND: Final[Mapping[Level, Callable[[Session, Query], list[dict[str, str]]]]] = {
    Level.PATIENT: _find_patients,
    Level.STUDY: _find_studies,
    Level.SERIES: _find_series,
    Level.IMAGE: _find_instances,
}
