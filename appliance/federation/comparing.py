"""What is new in a plan that asks to run here, and an approval of what was shown and nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.research import Protocol, ProtocolState
from appliance.federation import protocols
from appliance.federation.protocols import ProtocolDecisionError
from trainer.federation.differences import Difference, differences
from trainer.federation.plan import Plan, content_sha256

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

SAME_RUN: Final = "same_run"
SAME_TASK: Final = "same_task"
_STANDING: Final = (ProtocolState.APPROVED, ProtocolState.PAUSED)


@dataclass(frozen=True)
class Comparison:
    """An earlier protocol that a person approved here, and what differs; ``rule`` says why this one."""

    earlier: Protocol
    rule: str
    differences: tuple[Difference, ...]


def comparison(session: Session, protocol: Protocol) -> Comparison | None:
    """Compare with the last plan that was approved here: of the same run, else of the same task.

    Two tasks are the same here when name and label are: what is learned, under the name that people gave it.
    """
    approved = (
        select(Protocol)
        .where(Protocol.approved_at.is_not(None), Protocol.id != protocol.id)
        .order_by(Protocol.approved_at.desc())
    )
    if protocol.state in _STANDING and protocol.approved_at is not None:
        approved = approved.where(Protocol.approved_at < protocol.approved_at)
    found = session.scalars(approved).all()
    same_run = [row for row in found if row.run_id == protocol.run_id]
    same_task = [row for row in found if _task(row) == _task(protocol)]
    for rule, rows in ((SAME_RUN, same_run), (SAME_TASK, same_task)):
        if rows:
            plans = Plan.from_json(rows[0].plan), Plan.from_json(protocol.plan)
            return Comparison(rows[0], rule, differences(*plans))
    return None


def shown_sha256(protocol: Protocol, compared: Comparison | None) -> str:
    """Return the hash of what a person sees before approving: the plan, what is new, against which."""
    against = "" if compared is None else compared.earlier.plan_sha256
    found = [] if compared is None else [asdict(one) for one in compared.differences]
    return content_sha256({"plan": protocol.plan_sha256, "against": against, "differences": found})


def approve(
    session: Session, ledger: Ledger, protocol_id: str, actor: str, reason: str | None, shown: str
) -> Protocol:
    """Approve what was shown.

    Raises
    ------
    UnknownProtocolError, ProtocolDecisionError
        As :func:`protocols.decide`, and when something else would be shown by now.
    """
    protocol = protocols.find(session, protocol_id)
    expected = shown_sha256(protocol, comparison(session, protocol))
    if shown != expected:
        raise ProtocolDecisionError("not what was shown; look at the protocol again and approve that")
    return protocols.decide(
        session, ledger, protocol.id, ProtocolState.APPROVED, actor, reason, shown_sha256=expected
    )


def _task(protocol: Protocol) -> tuple[str, str]:
    task = Plan.from_json(protocol.plan).task
    return task.name, task.label
