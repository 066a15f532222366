"""Plans that ask to run here, and what the site's people say about them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import Select, distinct, func, select

from appliance import masked
from appliance.db.base import now
from appliance.db.research import Label, Protocol, ProtocolState, ResearchInstance, Round, Subject
from appliance.federation.errors import FederationError
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from trainer.federation.plan import Plan
    from trainer.task import TaskSpec

PROTOCOL_PROPOSED: Final = "protocol.proposed"
PROTOCOL_DECIDED: Final = "protocol.decided"
PROTOCOL_EXPIRED: Final = "protocol.expired"
EXPIRED: Final = "its expiry has passed"
MAX_REASON: Final = 500
MAX_PENDING: Final = 200

# What a person may decide, and in which state a protocol must be for it; leaving a run is final.
_NOT_LEFT: Final = frozenset(ProtocolState) - {ProtocolState.LEFT}
DECISIONS: Final[Mapping[ProtocolState, frozenset[ProtocolState]]] = MappingProxyType(
    {
        ProtocolState.APPROVED: _NOT_LEFT,
        ProtocolState.REFUSED: _NOT_LEFT,
        ProtocolState.SUSPENDED: _NOT_LEFT,
        ProtocolState.PAUSED: frozenset({ProtocolState.APPROVED}),
        ProtocolState.LEFT: _NOT_LEFT,
    }
)
_EXPIRING: Final = (ProtocolState.PENDING, ProtocolState.APPROVED, ProtocolState.PAUSED)


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
    if _has_left(session, plan.run_id):
        protocol.state, protocol.reason = ProtocolState.LEFT, "this site left the run"
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
    shown_sha256: str = "",
) -> Protocol:
    """Record a person's decision; every one is in the ledger, and all but ``left`` may be changed later.

    Whoever leaves, leaves the run: all its plans here, those too that are proposed later.

    Parameters
    ----------
    protocol_id : str
        Row id, or the first 8 or more digits of the plan's hash.
    actor : str
        Who decides: a user's row id, or the account at the command line.
    shown_sha256 : str
        Of what the person saw (:mod:`appliance.federation.comparing`), for the ledger.

    Raises
    ------
    UnknownProtocolError, ProtocolDecisionError
    """
    if state not in DECISIONS:
        raise ProtocolDecisionError("a decision is approved, refused, suspended, paused or left")
    protocol = find(session, protocol_id)
    if protocol.state not in DECISIONS[state]:
        raise ProtocolDecisionError(f"the protocol is {protocol.state} and cannot be {state.value}")
    moment = at or now()
    if state == ProtocolState.APPROVED and protocol.expires_at is not None and protocol.expires_at <= moment:
        raise ProtocolDecisionError("the plan has expired; it can no longer be approved")
    if state == ProtocolState.APPROVED:
        protocol.approved_at = moment
    _mark(session, ledger, protocol, state, actor, reason, moment, shown_sha256)
    if state == ProtocolState.LEFT:
        for other in session.scalars(_of_run(protocol.run_id).where(Protocol.state != ProtocolState.LEFT)):
            _mark(session, ledger, other, state, actor, reason, moment)
    return protocol


def resume(
    session: Session, ledger: Ledger, protocol_id: str, actor: str, reason: str | None = None
) -> Protocol:
    """Let a paused protocol take part again; raises like :func:`decide`."""
    state = find(session, protocol_id).state
    if state != ProtocolState.PAUSED:
        raise ProtocolDecisionError(f"the protocol is {state}; expected paused")
    return decide(session, ledger, protocol_id, ProtocolState.APPROVED, actor, reason)


def suspend_expired(session: Session, ledger: Ledger, at: datetime) -> int:
    """Suspend what has passed its expiry; return how many."""
    expired = session.scalars(_expired(at)).all()
    for row in expired:
        row.state, row.reason = ProtocolState.SUSPENDED, EXPIRED
        body = {"protocol_id": row.id, "plan_sha256": row.plan_sha256}
        ledger.append(session, kind=PROTOCOL_EXPIRED, subject_id=row.id, body=body)
    return len(expired)


def any_expired(session: Session, at: datetime) -> bool:
    """Whether there is something for :func:`suspend_expired` to do."""
    return session.scalar(_expired(at).limit(1)) is not None


def _expired(at: datetime) -> Select[Protocol]:
    return select(Protocol).where(Protocol.state.in_(_EXPIRING), Protocol.expires_at <= at)


def halted(protocol: Protocol, at: datetime) -> Refusal | None:
    """Return why nothing of this protocol may run or leave now; None when it may."""
    if protocol.expires_at is not None and protocol.expires_at <= at:
        return Refusal.EXPIRED
    return _HALTS.get(ProtocolState(protocol.state), Refusal.NOT_APPROVED)


_HALTS: Final[Mapping[ProtocolState, Refusal | None]] = MappingProxyType(
    {
        ProtocolState.APPROVED: None,
        ProtocolState.PAUSED: Refusal.PAUSED,
        ProtocolState.SUSPENDED: Refusal.SUSPENDED,
        ProtocolState.REFUSED: Refusal.REFUSED,
        ProtocolState.LEFT: Refusal.LEFT,
    }
)


def hours(session: Session, protocol: Protocol) -> float:
    """Return how many hours this site has computed for a protocol's run."""
    seconds = select(func.sum(Round.compute_seconds)).where(Round.run_id == protocol.run_id)
    return float(session.scalar(seconds) or 0.0) / 3600


def _of_run(run_id: str) -> Select[Protocol]:
    return select(Protocol).where(Protocol.run_id == run_id)


def _has_left(session: Session, run_id: str) -> bool:
    left = _of_run(run_id).where(Protocol.state == ProtocolState.LEFT).limit(1)
    return session.scalar(left) is not None


def _mark(
    session: Session,
    ledger: Ledger,
    protocol: Protocol,
    state: ProtocolState,
    actor: str,
    reason: str | None,
    at: datetime,
    shown_sha256: str = "",
) -> None:
    protocol.state = state
    protocol.reason = reason[:MAX_REASON] if reason else None
    protocol.decided_by = actor[:64]
    protocol.decided_at = at
    body = {"protocol_id": protocol.id, "state": state.value, "plan_sha256": protocol.plan_sha256}
    if shown_sha256:
        body["shown_sha256"] = shown_sha256
    ledger.append(session, kind=PROTOCOL_DECIDED, subject_id=protocol.id, body=body, actor=actor)


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
    """Count the subjects that this task could use, of its modality and not opted out.

    They are labelled or masked, but for an anomaly task, which takes all.
    """
    if task.finding is None:
        return masked.cohort(session, task)
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
