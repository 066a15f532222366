"""The site's side of a round, in the research zone: gate, row, wake-up call, receipt.

The engine's job process asks for all this over a Unix socket. It holds no key and opens no database: a
hostile coordinator or model finds nothing there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Select, select

from appliance import logs
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import DatasetVersion, Protocol, Receipt, ResearchLedgerEntry, Round
from appliance.federation import protocols, roundfiles
from appliance.federation.errors import ReleaseError
from trainer import strategies
from trainer.errors import TrainerError
from trainer.federation import gate, receipt
from trainer.federation.plan import Plan
from trainer.weights_io import from_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone

ROUND_REQUESTED: Final = "round.requested"
ROUND_RELEASED: Final = "round.released"
ROUND_OTHER_MODEL: Final = "round.other_model"
REWAKE_S: Final = 10.0
MAX_ATTEMPTS: Final = 4
REVIVE_AFTER_S: Final = 10.0
MAX_REVIVALS: Final = 3  # of one round before its deadline
TRAIN: Final = "train"
FINALIZE: Final = "finalize"
KINDS: Final = (TRAIN, FINALIZE)

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a coordinator asks for: one round of one plan on one global model."""

    plan_sha256: str
    kind: str
    number: int
    model_sha256: str


@dataclass(frozen=True)
class Decision:
    """The gate's answer: ``admitted``, ``pending`` or ``refused``, with the reason and its code.

    ``wanted``: admitted, but the global model has to be stored first.
    """

    standing: str
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class RoundView:
    """A round's row as the engine's process sees it."""

    round_id: str
    state: str
    reason: str | None
    progress: dict[str, Any]
    samples: int
    metrics: dict[str, Any]
    train_seconds: float | None


@dataclass(frozen=True)
class SiteService:
    """Everything that the engine's process may ask for."""

    zone: ResearchZone

    def propose(self, content: dict[str, Any], announced_sha256: str) -> Decision:
        """Write a plan down when it is new, and say whether its first round may run."""
        try:
            plan = Plan.from_json(content)
        except TrainerError as error:
            return Decision("refused", "unreadable_plan", str(error)[:300])
        if plan.sha256 != announced_sha256:
            return Decision(
                "refused", gate.Refusal.OTHER_PLAN.value, "the plan differs from its announced hash"
            )
        with writing(self.zone.engine) as session:
            other = session.scalar(
                select(Protocol).where(Protocol.run_id == plan.run_id, Protocol.plan_sha256 != plan.sha256)
            )
            protocol = protocols.propose(session, self.zone.ledger, plan)
            if other is not None and protocol.state != gate.Standing.APPROVED:
                message = "this run was proposed here with another plan; a person must look"
                protocol.reason = message
            return self._decide(session, protocol, plan, announced_sha256, 1, on_other_model=False)

    def begin(self, asked: Asked) -> tuple[Decision, RoundView | None]:
        """Ask the gate; when it admits, find or insert the round's row and wake the worker.

        The row is unique by run, number, kind, site, model and plan: asked twice, the same row answers. While
        the model is not here the decision is ``wanted``: store it, then ask again.
        """
        with writing(self.zone.engine) as session:
            protocol, plan, decision = self._admitted(session, asked)
            if protocol is None or plan is None:
                return decision, None
            if not roundfiles.model_path(self.zone.root, asked.model_sha256).is_file():
                return Decision("wanted", "no_model", "the global model is not here"), None
            row, is_new = self._row(session, protocol, plan, asked)
            view = _view(row)
            if is_new:
                roundfiles.remove_old_models(session, self.zone.root)
        if is_new:
            self.zone.wake(view.round_id)
        return decision, view

    def store_model(self, asked: Asked, content: bytes) -> Path:
        """Keep the global model of a round that the gate admits; older ones make room.

        Raises
        ------
        ReleaseError
            If the gate does not admit the round on this model, or the bytes are others or too many.
        """
        with writing(self.zone.engine) as session:
            protocol, _, decision = self._admitted(session, asked)
        if protocol is None:
            raise ReleaseError(f"no model is wanted: {decision.code or decision.standing}")
        max_bytes = self.zone.settings.federation.max_model_mib * 2**20
        path = roundfiles.store_model(self.zone.root, asked.model_sha256, content, max_bytes)
        with reading(self.zone.engine) as session:
            roundfiles.remove_old_models(session, self.zone.root)
        return path

    def _admitted(
        self, session: Session, asked: Asked
    ) -> tuple[Protocol, Plan, Decision] | tuple[None, None, Decision]:
        """Ask the gate about a round; protocol and plan come with an admission alone."""
        if asked.kind not in KINDS:
            return None, None, Decision("refused", "unknown_kind", "no such kind of round")
        protocol = session.scalar(select(Protocol).where(Protocol.plan_sha256 == asked.plan_sha256))
        if protocol is None:
            unknown = Decision("refused", gate.Refusal.NOT_APPROVED.value, "the plan is not known here")
            return None, None, unknown
        plan = Plan.from_json(protocol.plan)
        other = session.scalar(_rounds(protocol, asked).where(~_on_model(asked)).limit(1))
        decision = self._decide(
            session, protocol, plan, asked.plan_sha256, asked.number, on_other_model=other is not None
        )
        if other is not None and decision.code == gate.Refusal.OTHER_MODEL:
            self._note_other_model(session, other)
        return (protocol, plan, decision) if decision.standing == "admitted" else (None, None, decision)

    def watch(self, round_id: str) -> RoundView | None:
        """Return a round's row; one that waits for long is announced to the workers again."""
        with reading(self.zone.engine) as session:
            row = session.get(Round, round_id)
            if row is None:
                return None
            view, forgotten = _view(row), _forgotten(row)
        if forgotten:
            with writing(self.zone.engine) as session:
                again = session.get(Round, round_id)
                if again is not None:
                    again.woken_at = now()
            self.zone.wake(round_id)
        return view

    def release(self, round_id: str) -> tuple[bytes, receipt.SignedReceipt]:
        """Return a finished round's update with its signed receipt; receipt and ledger are one transaction.

        Raises
        ------
        ReleaseError
            If the round is not done, its file is not what the worker wrote, or the update is larger than
            the plan allows.
        """
        with writing(self.zone.engine) as session:
            row = session.get(Round, round_id)
            if row is None or row.state != WorkState.DONE:
                raise ReleaseError("the round is not done")
            content = self._output(session, row)
            known = session.get(Receipt, row.receipt_id) if row.receipt_id else None
            if known is not None:
                return content, receipt.SignedReceipt(known.body, known.body_sha256, known.signature)
            signed = receipt.sign(
                receipt.build(_departure(session, row, content), now()), self.zone.keys.signing
            )
            stored = Receipt(
                round_id=row.id,
                body=dict(signed.body),
                body_sha256=signed.body_sha256,
                signature=signed.signature,
            )
            session.add(stored)
            session.flush()
            row.receipt_id = stored.id
            body = {"round_id": row.id, "receipt_sha256": signed.body_sha256, "size_bytes": len(content)}
            self.zone.ledger.append(session, kind=ROUND_RELEASED, subject_id=row.id, body=body)
            session.flush()
            old = roundfiles.forget_old_updates(session)
        with reading(self.zone.engine) as session:
            roundfiles.remove_updates(session, self.zone.root, old)
        return content, signed

    def _decide(
        self,
        session: Session,
        protocol: Protocol,
        plan: Plan,
        announced: str,
        number: int,
        *,
        on_other_model: bool,
    ) -> Decision:
        facts = gate.Facts(
            now=now(),
            announced_sha256=announced,
            approved_sha256=protocol.plan_sha256,
            standing=gate.Standing(protocol.state),
            cohort=protocols.cohort(session, plan.task),
            site_minimum_cohort=self.zone.settings.federation.minimum_cohort,
            number=number,
            on_other_model=on_other_model,
        )
        match gate.decide(plan, facts):
            case gate.Admit():
                return Decision("admitted")
            case gate.Wait():
                return Decision("pending")
            case gate.Refuse(reason, message):
                return Decision("refused", reason.value, message)

    def _row(self, session: Session, protocol: Protocol, plan: Plan, asked: Asked) -> tuple[Round, bool]:
        known = session.scalar(_rounds(protocol, asked).where(_on_model(asked)))
        deadline = now() + timedelta(seconds=plan.round_timeout_s)
        if known is not None:
            return known, _revived(known, deadline)
        row = Round(
            run_id=plan.run_id,
            number=asked.number,
            kind=asked.kind,
            site=self.zone.settings.federation.site,
            plan_sha256=asked.plan_sha256,
            global_model_sha256=asked.model_sha256,
            protocol_id=protocol.id,
            input_path=str(
                roundfiles.model_path(self.zone.root, asked.model_sha256).relative_to(self.zone.root)
            ),
            max_attempts=MAX_ATTEMPTS,
            woken_at=now(),
            deadline_at=deadline,
        )
        session.add(row)
        session.flush()
        body = {"round_id": row.id, "protocol_id": protocol.id, "number": asked.number, "kind": asked.kind}
        self.zone.ledger.append(session, kind=ROUND_REQUESTED, subject_id=row.id, body=body)
        return row, True

    def _note_other_model(self, session: Session, row: Round) -> None:
        """Record once per round that it was asked for on another model; whoever asks often fills nothing."""
        _LOG.warning(ROUND_OTHER_MODEL, round_id=row.id)
        entry = ResearchLedgerEntry
        known = select(entry.sequence).where(entry.subject_id == row.id, entry.kind == ROUND_OTHER_MODEL)
        if session.scalar(known.limit(1)) is None:
            body = {"round_id": row.id, "number": row.number, "kind": row.kind}
            self.zone.ledger.append(session, kind=ROUND_OTHER_MODEL, subject_id=row.id, body=body)

    def _output(self, session: Session, row: Round) -> bytes:
        """Read what the worker wrote; an evaluation has no update."""
        if row.kind != TRAIN:
            return b""
        if row.output_path is None or row.output_sha256 is None:
            raise ReleaseError("the round has no update")
        path = (self.zone.root / row.output_path).resolve()
        if not path.is_relative_to(self.zone.root.resolve()):
            raise ReleaseError("the update lies outside the research zone")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"the update cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != row.output_sha256:
            raise ReleaseError("the update differs from what the worker wrote")
        protocol = session.get(Protocol, row.protocol_id)
        if protocol is None or _norm(content) > Plan.from_json(protocol.plan).max_update_norm:
            raise ReleaseError("the update is larger than the plan allows")
        return content


def _rounds(protocol: Protocol, asked: Asked) -> Select[Round]:
    """Return this round as it was asked for here, on whatever model."""
    return select(Round).where(
        Round.protocol_id == protocol.id, Round.number == asked.number, Round.kind == asked.kind
    )


def _on_model(asked: Asked) -> ColumnElement[bool]:
    return Round.global_model_sha256 == asked.model_sha256


def _departure(session: Session, row: Round, content: bytes) -> receipt.Departure:
    dataset = session.get(DatasetVersion, row.dataset_version_id) if row.dataset_version_id else None
    return receipt.Departure(
        run_id=row.run_id,
        number=row.number,
        kind=row.kind,
        site=row.site,
        plan_sha256=row.plan_sha256,
        global_model_sha256=row.global_model_sha256,
        update_sha256=row.output_sha256 or "" if row.kind == TRAIN else "",
        size_bytes=len(content),
        tensor_names=tuple(sorted(from_bytes(content))) if content else (),
        samples=row.samples,
        dataset_sha256=dataset.content_sha256 if dataset is not None else "",
        metric_names=tuple(row.metrics),
        update_norm=_norm(content),
    )


def _norm(content: bytes) -> float:
    return strategies.update_norm(from_bytes(content)) if content else 0.0


def _view(row: Round) -> RoundView:
    return RoundView(
        row.id, row.state, row.reason, dict(row.progress), row.samples, dict(row.metrics), row.train_seconds
    )


def _revived(row: Round, deadline: datetime) -> bool:
    """Give a round another chance, since it is asked for again.

    One that nobody worked on in time starts anew. One that died before its deadline is tried again too, a few
    times and not at once: the coordinator would give the run up before that deadline.
    """
    late = row.deadline_at is not None and row.deadline_at <= now()
    if late and row.state in {WorkState.QUEUED, WorkState.FAILED, WorkState.DEAD}:
        row.attempts, row.max_attempts = 0, MAX_ATTEMPTS
    elif _may_try_again(row):
        row.max_attempts += MAX_ATTEMPTS
    else:
        return False
    row.state, row.reason, row.next_try_at = WorkState.QUEUED, None, None
    row.deadline_at, row.woken_at = deadline, now()
    return True


def _may_try_again(row: Round) -> bool:
    """Whether a dead row has rested and has revivals left; each raises ``max_attempts``, which so counts."""
    rested = now() - row.updated_at >= timedelta(seconds=REVIVE_AFTER_S)
    return row.state == WorkState.DEAD and rested and row.max_attempts < MAX_ATTEMPTS * (1 + MAX_REVIVALS)


def _forgotten(row: Round) -> bool:
    """Whether a queued row was announced so long ago that the message is probably lost."""
    if row.state != WorkState.QUEUED:
        return False
    return row.woken_at is None or now() - row.woken_at > timedelta(seconds=REWAKE_S)
