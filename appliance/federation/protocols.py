"""Plans that ask to run here, and what the site's people say about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import distinct, func, select

from appliance.db.base import now
from appliance.db.research import Label, Protocol, ProtocolState, ResearchInstance, Subject
from appliance.federation.errors import FederationError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from trainer.federation.plan import Plan
    from trainer.task import TaskSpec

PROTOCOL_PROPOSED: Final = "protocol.proposed"
PROTOCOL_DECIDED: Final = "protocol.decided"
MAX_REASON: Final = 500
MAX_PENDING: Final = 200

DECISIONS: Final = (ProtocolState.APPROVED, ProtocolState.REFUSED, ProtocolState.SUSPENDED)


class UnknownProtocolError(FederationError):
    """There is no such protocol here."""


class ProtocolDecisionError(FederationError):
    """A decision that cannot be taken."""


def propose(session: Session, ledger: Ledger, plan: Plan) -> Protocol:
    """Return the protocol of this plan, writing it down as pending when it is new."""
    digest = plan.sha256
    known = session.scalar(select(Protocol).where(Protocol.plan_sha256 == digest))
    if known is not None:
        return known
    pending = session.scalar(
        select(func.count()).select_from(Protocol).where(Protocol.state == ProtocolState.PENDING)
    )
    if (pending or 0) >= MAX_PENDING:
        raise ProtocolDecisionError(f"{MAX_PENDING} protocols wait for a decision; refuse some first")
    protocol = Protocol(
        plan_sha256=digest,
        run_id=plan.run_id,
        name=plan.name,
        plan=plan.to_json(),
        state=ProtocolState.PENDING,
        expires_at=plan.expires_at,
    )
    session.add(protocol)
    session.flush()
    ledger.append(session, kind=PROTOCOL_PROPOSED, subject_id=protocol.id, body={"plan_sha256": digest})
    return protocol


def decide(
    session: Session,
    ledger: Ledger,
    protocol_id: str,
    state: ProtocolState,
    actor: str,
    reason: str | None = None,
    at: datetime | None = None,
) -> Protocol:
    """Record a person's decision; an earlier one may be changed, and every change is in the ledger.

    Parameters
    ----------
    protocol_id : str
        Row id, or the first 8 or more digits of the plan's hash.
    actor : str
        Who decides: a user's row id, or the account at the command line.

    Raises
    ------
    UnknownProtocolError, ProtocolDecisionError
    """
    if state not in DECISIONS:
        raise ProtocolDecisionError("a decision is approved, refused or suspended")
    protocol = find(session, protocol_id)
    moment = at or now()
    if state == ProtocolState.APPROVED and protocol.expires_at is not None and protocol.expires_at <= moment:
        raise ProtocolDecisionError("the plan has expired; it can no longer be approved")
    protocol.state = state
    protocol.reason = reason[:MAX_REASON] if reason else None
    protocol.decided_by = actor[:64]
    protocol.decided_at = moment
    body = {"protocol_id": protocol.id, "state": state.value, "plan_sha256": protocol.plan_sha256}
    ledger.append(session, kind=PROTOCOL_DECIDED, subject_id=protocol.id, body=body, actor=actor)
    return protocol


def find(session: Session, protocol_id: str) -> Protocol:
    """Return a protocol by row id or by the beginning of its plan's hash; raises UnknownProtocolError."""
    found = session.get(Protocol, protocol_id)
    if found is not None:
        return found
    if len(protocol_id) >= 8 and protocol_id.isalnum():
        matching = session.scalars(
            select(Protocol).where(Protocol.plan_sha256.startswith(protocol_id)).limit(2)
        ).all()
        if len(matching) == 1:
            return matching[0]
    raise UnknownProtocolError("no such protocol; expected a row id or the beginning of one plan's hash")


def cohort(session: Session, task: TaskSpec) -> int:
    """Count the subjects that this task could use: labelled, of its modality, not opted out."""
    statement = (
        select(func.count(distinct(Subject.id)))
        .join(ResearchInstance, ResearchInstance.subject_id == Subject.id)
        .join(Label, Label.pseudonym == Subject.pseudonym)
        .where(
            Subject.opted_out.is_(False),
            ResearchInstance.modality.in_(task.modalities),
            Label.name == task.label,
        )
    )
    return int(session.scalar(statement) or 0)
