"""What rules can see of a stored study, or of one instance that is not stored."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance.conditions import Facts, RuleError
from appliance.db.clinical import Instance, Result, Series, Study
from appliance.db.peers import Fetch, FetchedStudy, Peer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.index import InstanceHeader

# Keyword (PS3.6) -> column of a series, and field of a header.
_OF_SERIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Modality": "modality",
        "BodyPartExamined": "body_part_examined",
        "SeriesDescription": "series_description",
        "ProtocolName": "protocol_name",
        "StationName": "station_name",
        "InstitutionName": "institution_name",
        "Manufacturer": "manufacturer",
        "ManufacturerModelName": "manufacturer_model_name",
    }
)


def gather(session: Session, study_id: str, at: datetime) -> Facts:
    """Collect what rules can see of a study.

    Parameters
    ----------
    at : datetime
        When it was assembled.

    Raises
    ------
    RuleError
        If there is no such study.
    """
    study = session.get(Study, study_id)
    if study is None:
        raise RuleError(f"study {study_id}: does not exist")
    own = select(Result.sop_instance_uid)
    columns = [getattr(Series, name) for name in _OF_SERIES.values()]
    series = session.execute(select(*columns).where(Series.study_id == study_id)).all()
    attributes = {
        keyword: frozenset(value for row in series if (value := row[position]))
        for position, keyword in enumerate(_OF_SERIES)
    }
    classes = session.execute(
        select(Instance.sop_class_uid, Instance.calling_ae_title, func.count())
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study_id, Instance.sop_instance_uid.not_in(own))
        .group_by(Instance.sop_class_uid, Instance.calling_ae_title)
    ).all()
    attributes |= {
        "StudyDescription": frozenset({study.study_description} - {""}),
        "SOPClassUID": frozenset(row[0] for row in classes),
    }
    senders = {row[1] for row in classes} | {study.calling_ae_title}
    return Facts(
        attributes=attributes,
        instances=sum(row[2] for row in classes),
        calling_ae_title=study.calling_ae_title,
        sources=frozenset(senders - {""}) | peers_of(session, senders),
        at=at,
        fetched=_is_fetched(session, study),
    )


def of_header(session: Session, header: InstanceHeader, calling_ae_title: str, at: datetime) -> Facts:
    """Return what rules would see of a study that holds this instance alone, sent by this AE title."""
    attributes = {keyword: frozenset({getattr(header, name)} - {""}) for keyword, name in _OF_SERIES.items()}
    attributes |= {
        "StudyDescription": frozenset({header.study_description} - {""}),
        "SOPClassUID": frozenset({header.sop_class_uid}),
    }
    senders = {calling_ae_title} - {""}
    return Facts(
        attributes=attributes,
        instances=1,
        calling_ae_title=calling_ae_title,
        sources=frozenset(senders) | peers_of(session, senders),
        at=at,
    )


def peers_of(session: Session, ae_titles: set[str]) -> frozenset[str]:
    """Return the names of the peers with these AE titles."""
    return frozenset(session.scalars(select(Peer.name).where(Peer.ae_title.in_(ae_titles - {""}))))


def _is_fetched(session: Session, study: Study) -> bool:
    """Whether a fetch of ours had asked for the study itself before the first of it came."""
    statement = (
        select(FetchedStudy.id)
        .join(Fetch, Fetch.id == FetchedStudy.fetch_id)
        .where(
            FetchedStudy.study_instance_uid == study.study_instance_uid,
            FetchedStudy.attempts > 0,
            Fetch.created_at <= study.first_received_at,
        )
    )
    return session.scalar(statement.limit(1)) is not None
