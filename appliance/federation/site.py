"""The site's side of a round, in the research zone: gate, row, wake-up call, receipt.

The engine's job process asks for all this over a Unix socket. It holds no key and opens no database: a
hostile coordinator or model finds nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Select, select

from appliance import logs
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, Receipt, ResearchLedgerEntry, Round
from appliance.federation import budget, departures, protocols, refusals, roundfiles, roundrows, sitekeys
from appliance.federation.departures import FINALIZE, TRAIN
from appliance.federation.dialect import beside
from appliance.federation.errors import ReleaseError
from trainer import strategies
from trainer.errors import TrainerError
from trainer.federation import gate, receipt
from trainer.federation.peering.site import PULLS
from trainer.federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.federation.roundrows import RoundView
    from appliance.node import ResearchZone

ROUND_REQUESTED: Final = "round.requested"
ROUND_RELEASED: Final = "round.released"
ROUND_OTHER_MODEL: Final = "round.other_model"
AGGREGATE: Final = "aggregate"
SEND: Final = "send"
KINDS: Final = (TRAIN, AGGREGATE, SEND, FINALIZE)
MAX_AGGREGATES: Final = 8  # of one round, and models sent in one

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a coordinator asks for: one round of one plan on one global model.

    ``mail_sha256`` is of what comes beside a record between peers, empty where nothing does.
    """

    plan_sha256: str
    kind: str
    number: int
    model_sha256: str
    mail_sha256: str = ""


@dataclass(frozen=True)
class Decision:
    """The gate's answer: ``admitted``, ``pending`` or ``refused``, with the reason and its code.

    ``wanted``: admitted, but the global model has to be stored first.
    """

    standing: str
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class SiteService:
    """Everything that the engine's process may ask for."""

    zone: ResearchZone

    def propose(self, content: dict[str, Any], announced_sha256: str, told_by: str = "") -> Decision:
        """Write a plan down when it is new, and say whether its first round may run.

        ``told_by``: the coordinator's version, with which a plan that cannot be read is refused.
        """
        try:
            plan = Plan.from_json(content)
        except TrainerError as error:
            return self._refused(refusals.UNREADABLE_PLAN, str(error)[:200] + beside(told_by))
        if plan.sha256 != announced_sha256:
            return self._refused(gate.Refusal.OTHER_PLAN, "the plan differs from its announced hash")
        with writing(self.zone.engine) as session:
            other = session.scalar(
                select(Protocol).where(Protocol.run_id == plan.run_id, Protocol.plan_sha256 != plan.sha256)
            )
            protocol = protocols.propose(session, self.zone.ledger, plan)
            if other is not None and protocol.state == gate.Standing.PENDING:
                message = "this run was proposed here with another plan; a person must look"
                protocol.reason = message
            booked = budget.has_spent(session, plan)  # its next round is looked at when it is asked for
            return self._decide(
                session, protocol, plan, announced_sha256, 1, on_other_model=False, booked=booked
            )

    def begin(self, asked: Asked) -> tuple[Decision, RoundView | None]:
        """Ask the gate; when it admits, find or insert the round's row and wake the worker.

        The row is unique by run, number, kind, site, model and plan: asked twice, the same row answers. While
        the model is not here the decision is ``wanted``: store it, then ask again.
        """
        with writing(self.zone.engine) as session:
            protocol, plan, decision = self._admitted(session, asked)
            if protocol is None or plan is None:
                return decision, None
            if not all(path.is_file() for path in self._files(protocol, asked)):
                return Decision("wanted", "no_model", "the global model is not here"), None
            row, is_new = self._row(session, protocol, plan, asked)
            view = roundrows.view(row)
            if is_new:
                if asked.kind == TRAIN:
                    budget.charge(session, self.zone.ledger, plan, row)
                roundfiles.remove_old_models(session, self.zone.root)
        if is_new:
            self.zone.wake(view.round_id)
        return decision, view

    def decide(self, asked: Asked) -> Decision:
        """Ask the gate about a round without beginning it; what it refuses is recorded."""
        with writing(self.zone.engine) as session:
            return self._admitted(session, asked)[-1]

    def store_model(self, asked: Asked, pieces: Iterable[bytes | memoryview], base: str = "") -> Path:
        """Keep the global model of a round that the gate admits; older ones make room.

        ``pieces`` are the file's content; none is read unless the model is wanted. ``base``: hash of the
        model that it is a packed step from; empty where it is a model.

        Raises
        ------
        ReleaseError
            If the gate does not admit the round on this model, or the bytes are others or too many.
        """
        with writing(self.zone.engine) as session:
            protocol, plan, decision = self._admitted(session, asked)
        if protocol is None or plan is None:
            raise ReleaseError(f"no model is wanted: {decision.code or decision.standing}")
        max_bytes = self.zone.settings.federation.max_model_mib * 2**20
        if base:
            number = asked.number - (asked.kind == TRAIN)
            pieces = [roundfiles.followed(self.zone.root, plan, number, base, b"".join(pieces))]
        path = roundfiles.store_model(self.zone.root, asked.model_sha256, pieces, max_bytes)
        with reading(self.zone.engine) as session:
            roundfiles.remove_old_models(session, self.zone.root)
        return path

    def store_mail(self, asked: Asked, pieces: Iterable[bytes | memoryview]) -> None:
        """Keep what comes beside a record between peers; raises ReleaseError as :meth:`store_model` does."""
        with writing(self.zone.engine) as session:
            protocol, _, decision = self._admitted(session, asked)
        if protocol is None or not asked.mail_sha256:
            raise ReleaseError(f"no mail is wanted: {decision.code or decision.standing}")
        max_bytes = self.zone.settings.federation.max_model_mib * 2**20
        roundfiles.store_mail(self._files(protocol, asked)[-1], pieces, max_bytes)

    def _files(self, protocol: Protocol, asked: Asked) -> list[Path]:
        """Return what has to be here before a round begins: its model, and its mail where it has some."""
        root, digest = self.zone.root, asked.mail_sha256
        mail = [roundfiles.mail_path(root, protocol.id, asked.kind, asked.number, digest)] if digest else []
        return [roundfiles.model_path(root, asked.model_sha256), *mail]

    def _admitted(
        self, session: Session, asked: Asked
    ) -> tuple[Protocol, Plan, Decision] | tuple[None, None, Decision]:
        """Ask the gate about a round; protocol and plan come with an admission alone."""
        if asked.kind not in KINDS:
            return None, None, self._refused(refusals.UNKNOWN_KIND, "no such kind of round", session)
        protocol = session.scalar(select(Protocol).where(Protocol.plan_sha256 == asked.plan_sha256))
        if protocol is None:
            refusals.note(session, self.zone.ledger, refusals.UNKNOWN_PLAN)
            unknown = Decision("refused", gate.Refusal.NOT_APPROVED.value, "the plan is not known here")
            return None, None, unknown
        plan = Plan.from_json(protocol.plan)
        if not _knows(plan, asked):
            return None, None, self._refused(refusals.UNKNOWN_KIND, "no site does this in this plan", session)
        others = session.scalars(
            _rounds(protocol, asked).where(~_on_model(asked)).limit(MAX_AGGREGATES)
        ).all()
        # Asked again after an abnormal end, a round to aggregate may have other updates.
        free = MAX_AGGREGATES - 1 if asked.kind in {AGGREGATE, SEND} else 0
        other = others[0] if len(others) > free else None
        known = session.scalar(_rounds(protocol, asked).where(_on_model(asked)))
        decision = self._decide(
            session,
            protocol,
            plan,
            asked.plan_sha256,
            asked.number,
            on_other_model=other is not None,
            booked=asked.kind != TRAIN or (known is not None and not roundrows.would_revive(known)),
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
            view, forgotten = _seen(session, row), roundrows.is_forgotten(row)
        if forgotten:
            with writing(self.zone.engine) as session:
                again = session.get(Round, round_id)
                if again is not None:
                    again.woken_at = now()
            self.zone.wake(round_id)
        return view

    def release(self, round_id: str) -> tuple[departures.Leaving, receipt.SignedReceipt]:
        """Return a finished round's update with its signed receipt; receipt and ledger are one transaction.

        Raises
        ------
        ReleaseError
            If the round is not done, its file is not what the worker wrote, the update is larger than the
            plan allows, or its privacy cost is not booked.
        """
        with writing(self.zone.engine) as session:
            row = session.get(Round, round_id)
            if row is None or row.state != WorkState.DONE:
                raise ReleaseError("the round is not done")
            if _seen(session, row).halted:
                raise ReleaseError("the protocol is not approved here (any more)")
            leaving = departures.leaving(session, self.zone.root, row)
            known = session.get(Receipt, row.receipt_id) if row.receipt_id else None
            if known is not None:
                return leaving, receipt.SignedReceipt(known.body, known.body_sha256, known.signature)
            signed = receipt.sign(
                receipt.build(departures.of_round(session, row, leaving), now()), self.zone.keys.signing
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
            body = {
                "round_id": row.id,
                "receipt_sha256": signed.body_sha256,
                "size_bytes": leaving.size_bytes,
            }
            self.zone.ledger.append(session, kind=ROUND_RELEASED, subject_id=row.id, body=body)
            session.flush()
            old = roundfiles.forget_old_updates(session)
        with reading(self.zone.engine) as session:
            roundfiles.remove_updates(session, self.zone.root, old)
        return leaving, signed

    def _decide(
        self,
        session: Session,
        protocol: Protocol,
        plan: Plan,
        announced: str,
        number: int,
        *,
        on_other_model: bool,
        booked: bool,
    ) -> Decision:
        settings = self.zone.settings.federation
        facts = gate.Facts(
            now=now(),
            announced_sha256=announced,
            approved_sha256=protocol.plan_sha256,
            standing=gate.Standing(protocol.state),
            cohort=protocols.cohort(session, plan.task),
            site_minimum_cohort=settings.minimum_cohort,
            number=number,
            on_other_model=on_other_model,
            hours=protocols.hours(session, protocol),
            cost=budget.cost(session, plan, required=settings.require_privacy, booked=booked),
            is_recipient=sitekeys.is_among_recipients(session, self.zone, plan),
        )
        match gate.decide(plan, facts):
            case gate.Admit():
                return Decision("admitted")
            case gate.Wait():
                return Decision("pending")
            case gate.Refuse(reason, message):
                if reason != gate.Refusal.OTHER_MODEL:  # recorded with its round
                    refusals.note(session, self.zone.ledger, reason, protocol.id, number=number)
                return Decision("refused", reason.value, message)

    def _refused(self, code: str, message: str, session: Session | None = None) -> Decision:
        """Refuse what no protocol here is about, and record it."""
        if session is None:
            with writing(self.zone.engine) as own:
                refusals.note(own, self.zone.ledger, code)
        else:
            refusals.note(session, self.zone.ledger, code)
        return Decision("refused", str(code), message)

    def _row(self, session: Session, protocol: Protocol, plan: Plan, asked: Asked) -> tuple[Round, bool]:
        known = session.scalar(_rounds(protocol, asked).where(_on_model(asked)))
        deadline = now() + timedelta(seconds=plan.round_timeout_s)
        if known is not None:
            return known, roundrows.revive(known, deadline)
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
            max_attempts=roundrows.MAX_ATTEMPTS,
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


def _rounds(protocol: Protocol, asked: Asked) -> Select[Round]:
    """Return this round as it was asked for here, on whatever model."""
    return select(Round).where(
        Round.protocol_id == protocol.id, Round.number == asked.number, Round.kind == asked.kind
    )


def _knows(plan: Plan, asked: Asked) -> bool:
    """Whether sites do what is asked for in rounds of this plan's strategy."""
    rule = strategies.STRATEGIES.get(plan.strategy.name)
    if asked.mail_sha256 and not plan.own_models:
        return False
    if asked.kind == SEND:
        return plan.strategy.name == PULLS
    return asked.kind != AGGREGATE or (rule is not None and rule.led_by_site)


def _on_model(asked: Asked) -> ColumnElement[bool]:
    return Round.global_model_sha256 == asked.model_sha256


def _seen(session: Session, row: Round) -> RoundView:
    """Return a round as the engine's process sees it: a halted one has nothing to wait for."""
    protocol = session.get(Protocol, row.protocol_id)
    halted = gate.Refusal.NOT_APPROVED if protocol is None else protocols.halted(protocol, now())
    return roundrows.view(row, halted or "")
