"""Updates that come when their round is over: never counted, always recorded.

The rule is to drop: an update is a step from one global model, and the run has moved on from that one. What
it cost in privacy was charged at the site before it was trained, and its receipt stands there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs
from appliance.consortium import block as blocks
from appliance.consortium.errors import BlockFormError
from appliance.db.coordinator import Contribution, FinishedRound
from appliance.db.engine import writing
from appliance.federation import chapters
from appliance.federation.answers import Answer, to_counted
from trainer.federation import aggregation

if TYPE_CHECKING:
    from appliance.federation.book import Book, Counted
    from appliance.federation.shelf import Carriage

UPDATE_LATE: Final = "update.late"
REASON: Final = "late: the round was over when it came"

_LOG = logs.logger(__name__)


@dataclass
class Late:
    """Gathers late updates in the engine's threads, writes them down in the workflow's."""

    carriage: Carriage
    _waiting: list[tuple[int, Counted]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: Answer) -> None:
        """Take note of an update; its tensors are dropped here. An answer without one is nothing late."""
        if answer.said.code or not answer.arrays:
            return
        try:
            said = blocks.read_statement(answer.said.statement.get("statement"))
        except BlockFormError:
            _LOG.warning(UPDATE_LATE, site=answer.site, reason="no signed contribution")
            return
        if said.plan != self.carriage.plan.sha256 or said.site != answer.site:
            _LOG.warning(UPDATE_LATE, site=answer.site, reason="of another run")
            return
        digest = aggregation.fingerprint(self.carriage.fitted(answer.arrays))
        counted = replace(to_counted(answer, None), update_sha256=digest, reason=REASON)
        with self._lock:
            self._waiting.append((said.number, counted))

    def write(self, book: Book, run_id: str) -> None:
        """Write down those of finished rounds; the others wait for the end of theirs."""
        last = book.last_round(run_id)
        with self._lock:
            due = [one for one in self._waiting if one[0] <= last]
            self._waiting = [one for one in self._waiting if one[0] > last]
        for number, counted in due:
            _note(book, run_id, number, counted)


def _note(book: Book, run_id: str, number: int, counted: Counted) -> None:
    """Write a late update to its round; one that stands there already was heard in time."""
    with writing(book.engine) as session:
        there = select(Contribution).where(
            Contribution.run_id == run_id, Contribution.number == number, Contribution.site == counted.site
        )
        of_run = select(FinishedRound).where(FinishedRound.run_id == run_id, FinishedRound.number == number)
        if session.scalar(there) is not None or session.scalar(of_run) is None:
            return
        session.add(chapters.row(run_id, number, counted))
        if book.ledger is not None:
            body = {
                "number": number,
                "update_sha256": counted.update_sha256,
                "run": book.ledger.commitment("run", run_id),
            }
            book.ledger.append(session, kind=UPDATE_LATE, body=body, actor="coordinator")
    _LOG.warning(UPDATE_LATE, site=counted.site, number=number)
