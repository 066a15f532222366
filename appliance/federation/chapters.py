"""What the consortium's ledger says of a run: its rounds and its final model, as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.block import Contribution
from appliance.consortium.chronicle import Entry
from appliance.db import coordinator as tables
from appliance.db.coordinator import FinishedRound, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from appliance.federation.book import Counted
    from appliance.ledger import Ledger


def round_finished(
    session: Session, ledger: Ledger | None, run: Run, number: int, counted: Iterable[Counted]
) -> None:
    """Append a finished round's block in its own transaction; a book without keys has no chain."""
    if ledger is None:
        return
    before, after = _model(session, run.id, number - 1), _model(session, run.id, number)
    entry = Entry(blocks.ROUND, run.plan_sha256, number, before, after, _contributions(counted))
    chronicle.append(session, ledger.signing, entry)


def model_taken(session: Session, ledger: Ledger | None, run: Run, counted: Iterable[Counted]) -> None:
    """Append a block with the sites that took the final model, if any did."""
    contributions = tuple(one for one in _contributions(counted) if one.accepted)
    if ledger is None or not contributions:
        return
    model = _model(session, run.id, run.total_rounds)
    entry = Entry(blocks.FINAL, run.plan_sha256, run.total_rounds, "", model, contributions)
    chronicle.append(session, ledger.signing, entry)


def _model(session: Session, run_id: str, number: int) -> str:
    session.flush()
    statement = select(FinishedRound.model_sha256)
    found = session.scalar(statement.where(FinishedRound.run_id == run_id, FinishedRound.number == number))
    return found or ""


def _contributions(counted: Iterable[Counted]) -> tuple[Contribution, ...]:
    """Return contributions by site; a refused one stands there with what its site signed, if it signed."""
    return tuple(_contribution(one) for one in sorted(counted, key=lambda one: one.site))


def _contribution(one: Counted) -> Contribution:
    said = one.signed.get("statement")
    statement = None if said is None else blocks.read_statement(said)
    signature = "" if statement is None else str(one.signed["signature"])
    return Contribution(one.site, one.reason is None, one.samples, statement, signature)


def row(run_id: str, number: int, one: Counted) -> tables.Contribution:
    """Return an answer as a row of the book."""
    return tables.Contribution(
        run_id=run_id,
        number=number,
        site=one.site,
        samples=one.samples,
        update_sha256=one.update_sha256,
        bytes_received=one.bytes_received,
        metrics=dict(one.metrics),
        accepted=one.reason is None,
        reason=None if one.reason is None else one.reason[:500],
    )
