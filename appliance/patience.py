"""How long studies are waited for: by source, looked up cheaply however many studies wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, and_, func, or_, select

from appliance.db.clinical import Instance, Series, Study, StudyState
from appliance.db.peers import Peer
from dicom_node.assembly import Waits, is_complete, longest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.settings import AssemblySettings

CHUNK: Final = 400  # studies whose senders are asked for in one statement


@dataclass(frozen=True)
class Patience:
    """The node's waits, and those of the AE titles that have their own."""

    default: Waits
    own: Mapping[str, Waits]

    def of(self, ae_titles: Iterable[str]) -> Waits:
        """Return how long a study is waited for that came from these AE titles: the slowest decides."""
        return longest((self.own.get(title, self.default) for title in ae_titles), self.default)


def read(session: Session, settings: AssemblySettings) -> Patience:
    """Read the waits of the node and of its peers; several peers with one AE title: the longest."""
    default = Waits(settings.quiet_period_s, settings.max_wait_s)
    rows = session.execute(
        select(Peer.ae_title, Peer.quiet_period_s, Peer.max_wait_s).where(Peer.may_send)
    ).all()
    own: dict[str, list[Waits]] = {}
    for title, quiet_period_s, max_wait_s in rows:
        waits = Waits(
            default.quiet_period_s if quiet_period_s is None else quiet_period_s,
            default.max_wait_s if max_wait_s is None else max_wait_s,
        )
        own.setdefault(title, []).append(waits)
    joined = {title: longest(waits, default) for title, waits in own.items()}
    return Patience(default, {title: waits for title, waits in joined.items() if waits != default})


def due(session: Session, patience: Patience, at: datetime) -> list[str]:
    """Return the studies whose wait is over.

    The database leaves out those that the AE title which sent first keeps waiting; only of the rest are all
    senders read, and only where some peer has waits of its own.
    """
    rows = session.execute(
        select(Study.id, Study.last_received_at, _pending_since().label("pending_since"))
        .where(Study.state == StudyState.RECEIVING, _over_for_the_first_sender(patience, at))
        .order_by(Study.last_received_at)
    ).all()
    senders = _senders(session, [row.id for row in rows]) if patience.own else {}
    found = []
    for row in rows:
        waits = patience.of(senders.get(row.id, ()))
        if is_complete(row.pending_since, row.last_received_at, at, waits.quiet_period_s, waits.max_wait_s):
            found.append(row.id)
    return found


def _over_for_the_first_sender(patience: Patience, at: datetime) -> ColumnElement[bool]:
    groups: dict[Waits, list[str]] = {}
    for title, waits in patience.own.items():
        groups.setdefault(waits, []).append(title)
    first = Study.calling_ae_title
    usual = and_(first.not_in(list(patience.own)), _over(patience.default, at))
    return or_(usual, *(and_(first.in_(titles), _over(waits, at)) for waits, titles in groups.items()))


def _pending_since() -> ColumnElement[datetime]:
    return func.coalesce(Study.pending_since, Study.first_received_at)


def _over(waits: Waits, at: datetime) -> ColumnElement[bool]:
    return or_(
        Study.last_received_at <= at - timedelta(seconds=waits.quiet_period_s),
        _pending_since() <= at - timedelta(seconds=waits.max_wait_s),
    )


def _senders(session: Session, study_ids: Sequence[str]) -> dict[str, set[str]]:
    senders: dict[str, set[str]] = {}
    for start in range(0, len(study_ids), CHUNK):
        chunk = study_ids[start : start + CHUNK]
        rows = session.execute(
            select(Series.study_id, Instance.calling_ae_title)
            .join(Instance, Instance.series_id == Series.id)
            .where(Series.study_id.in_(chunk))
            .distinct()
        )
        for study_id, title in rows:
            senders.setdefault(study_id, set()).add(title)
    return senders
