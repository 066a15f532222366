"""The site's side: a whole replica of the chain, checked block by block; a finding stops rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import logs
from appliance.consortium import block as blocks
from appliance.consortium import own
from appliance.consortium.block import Signed, Statement
from appliance.consortium.chain import FINALIZE, Finding
from appliance.consortium.errors import BlockFormError, ConsortiumError
from appliance.consortium.followed import following
from appliance.consortium.offers import BROKEN, Countersignature, Offer
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.research import ConsortiumBlock, ConsortiumFinding, ConsortiumHead, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Session

    from appliance.consortium.block import Block
    from appliance.consortium.chain import Chain
    from appliance.node import ResearchZone

AGGREGATE: Final = "aggregate"
SEND: Final = "send"
BEHIND: Final = "ledger_behind"
FOUND: Final = "consortium.found"
COUNTERSIGNED: Final = "consortium.countersigned"
RESOLVED: Final = "consortium.resolved"
ADOPTED: Final = "consortium.adopted"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Held:
    """Why a round does not run: the gate's code and a message."""

    code: str
    message: str


@dataclass(frozen=True)
class Replica:
    """The replica of one research zone."""

    zone: ResearchZone

    def receive(self, offer: Offer) -> Countersignature | Held:
        """Check what the coordinator offers, keep what is right and countersign the head.

        Nothing is countersigned while a finding is open, and none of the blocks that follow a wrong one is
        kept.
        """
        broken = Held(BROKEN, "the consortium's ledger is not what it was; a person must look")
        with writing(self.zone.engine) as session:
            if open_findings(session):
                return broken
            kept = current(session)
            try:
                with followed_here(session, kept) as chain:
                    if not self._take(session, kept, chain, offer):
                        return broken
                    if chain.size == 0:
                        return Held(BEHIND, "no block of the consortium's ledger has come yet")
                    return self._countersign(session, chain)
            except BlockFormError as error:
                self._find(
                    session, [Finding("replica", 0, f"this site's own replica was changed: {error}")], ""
                )
                return broken

    def hold(self, plan: str, kind: str, number: int, model: str) -> Held | None:
        """Say why a round must not run: a finding is open, or its model is not the one in the ledger."""
        with writing(self.zone.engine) as session:
            if open_findings(session):
                return Held(BROKEN, "the consortium's ledger is not what it was; a person must look")
            if kind in {AGGREGATE, SEND}:
                return None  # it comes with more than a model, which the worker compares
            before = number if kind == FINALIZE else number - 1
            with followed_here(session) as chain:
                recorded, size = chain.models.get((plan, before)), chain.size
            if recorded is None:
                return Held(BEHIND, "the model of this round is not in the consortium's ledger here")
            if recorded == model:
                return None
            message = f"round {number} was offered with another model than the ledger names"
            self._find(session, [Finding("model", size, message)], "")
        return Held(BROKEN, message)

    def statement(self, round_id: str) -> tuple[Statement, str]:
        """Return what this site contributed in a released round, signed, with the newest checked head.

        Raises
        ------
        ConsortiumError
            If nothing of this round was released, or there is no replica yet.
        """
        with reading(self.zone.engine) as session:
            row = session.scalar(select(Receipt).where(Receipt.round_id == round_id))
            with followed_here(session) as chain:
                size, federation, newest = chain.size, chain.federation, chain.head
            if row is None or size == 0:
                raise ConsortiumError("nothing of this round was released, or the ledger is not here")
            statement = own.statement(row, federation, newest)
        return statement, blocks.sign_statement(statement, self.zone.keys.signing)

    def resolve(self, finding_id: str, actor: str, *, adopt: bool) -> None:
        """Note that a person has looked into a finding; with ``adopt`` the next offer begins a new replica.

        The old replica and the finding stay as evidence.

        Raises
        ------
        ConsortiumError
            If there is no such open finding.
        """
        with writing(self.zone.engine) as session:
            row = session.get(ConsortiumFinding, finding_id)
            if row is None or row.resolved_at is not None:
                raise ConsortiumError("there is no such open finding")
            row.resolved_at, row.resolved_by = now(), actor
            body: dict[str, Any] = {"code": row.code, "sequence": row.sequence}
            self.zone.ledger.append(session, kind=RESOLVED, subject_id=row.id, body=body, actor=actor)
            if adopt:
                number = _number(session) + 1
                session.add(ConsortiumHead(replica=number))
                body = {"replica": number}
                self.zone.ledger.append(session, kind=ADOPTED, subject_id=row.id, body=body, actor=actor)

    def _take(self, session: Session, kept: Sequence[Signed], chain: Chain, offer: Offer) -> bool:
        """Let the chain of what is kept follow what is right of the offer; False after a finding."""
        found = self._own_head(session, chain) or _overlap(kept, offer)
        if found:
            self._find(session, found, "")
            return False
        for sequence, signed in enumerate(offer.blocks, start=offer.first):
            if sequence <= len(kept) or sequence != chain.size + 1:
                continue
            found = chain.take(signed) or list(own.check(session, self.zone, signed))
            if found:
                self._find(session, found, signed.body)
                return False
            session.add(
                ConsortiumBlock(
                    replica=_number(session), sequence=sequence, body=signed.body, signature=signed.signature
                )
            )
        found = list(chain.check_head(offer.head, offer.signature)) if chain.size else []
        if found:
            self._find(session, found, "")
            return False
        if chain.size == offer.head.size:
            self._keep_head(session, offer)
        return True

    def _own_head(self, session: Session, chain: Chain) -> list[Finding]:
        """Compare the replica with the head that this site countersigned last."""
        row = session.get(ConsortiumHead, _number(session))
        if row is None or row.size == 0 or (row.size <= chain.size and chain.tree.root(row.size) == row.root):
            return []
        return [Finding("replica", row.size, "this site's own replica differs from what it countersigned")]

    def _keep_head(self, session: Session, offer: Offer) -> None:
        number = _number(session)
        row = session.get(ConsortiumHead, number)
        if row is None:
            row = ConsortiumHead(replica=number)
            session.add(row)
        if row.size != offer.head.size:
            row.size, row.root, row.signature = offer.head.size, offer.head.root, offer.signature
            row.countersignature, row.at = "", now()
        session.flush()

    def _countersign(self, session: Session, chain: Chain) -> Countersignature:
        """Sign the head of the replica as it stands, once per head."""
        signing = self.zone.keys.signing
        key = blocks.public_hex(signing.public_key())
        row = session.get(ConsortiumHead, _number(session))
        signature = blocks.sign_head(chain.federation, chain.head, signing, "site")
        if row is not None and row.size == chain.size and not row.countersignature:
            row.countersignature = signature
            body = {"size": chain.size, "root": row.root}
            self.zone.ledger.append(session, kind=COUNTERSIGNED, body=body)
        return Countersignature(chain.head, signature, key)

    def _find(self, session: Session, found: Sequence[Finding], evidence: str) -> None:
        for one in found[:1]:
            row = ConsortiumFinding(
                replica=_number(session),
                sequence=one.sequence,
                code=one.code,
                message=one.message[:500],
                evidence={"body": evidence} if evidence else {},
            )
            session.add(row)
            session.flush()
            body = {"code": one.code, "sequence": one.sequence}
            self.zone.ledger.append(session, kind=FOUND, subject_id=row.id, body=body)
            _LOG.error(FOUND, finding_id=row.id, code=one.code, sequence=one.sequence)


def current(session: Session) -> list[Signed]:
    """Return the blocks of the present replica."""
    rows = session.execute(
        select(ConsortiumBlock.body, ConsortiumBlock.signature)
        .where(ConsortiumBlock.replica == _number(session))
        .order_by(ConsortiumBlock.sequence)
    )
    return [Signed(body, signature) for body, signature in rows]


def followed_here(session: Session, stored: Sequence[Signed] | None = None) -> AbstractContextManager[Chain]:
    """Give the chain of the present replica, for the time of a block; ``stored`` are its blocks, if known."""
    return following(session, _number(session), current(session) if stored is None else stored)


def was_counted(session: Session, plan: str, number: int, site: str) -> bool | None:
    """Whether the ledger says that a site's update went into a round of a plan; None before it says so."""
    block = rounds_of(session, plan).get(number)
    if block is None or block.kind != blocks.ROUND:
        return None
    return any(one.site == site and one.accepted for one in block.contributions)


def model_of(session: Session, plan: str, number: int) -> str | None:
    """Return the hash of the model that the ledger names after a plan's round; None before it does."""
    with followed_here(session) as chain:
        return chain.models.get((plan, number))


def rounds_of(session: Session, plan: str) -> dict[int, Block]:
    """Return by number the blocks that name a plan's models: of its start, and of its finished rounds."""
    read = (blocks.read_block(signed.body) for signed in current(session) if plan in signed.body)
    return {
        block.round: block
        for block in read
        if block.plan == plan and block.kind in {blocks.RUN, blocks.ROUND}
    }


def head(session: Session) -> ConsortiumHead | None:
    """Return the newest head that this site countersigned, None before the first."""
    return session.get(ConsortiumHead, _number(session))


def open_findings(session: Session) -> list[ConsortiumFinding]:
    """Return the findings that no person has resolved yet, oldest first."""
    statement = select(ConsortiumFinding).where(ConsortiumFinding.resolved_at.is_(None))
    return list(session.scalars(statement.order_by(ConsortiumFinding.found_at)))


def _number(session: Session) -> int:
    """Return the number of the present replica."""
    return int(session.scalar(select(func.max(ConsortiumHead.replica))) or 1)


def _overlap(kept: Sequence[Signed], offer: Offer) -> list[Finding]:
    """Compare offered blocks with those that are here already."""
    for sequence, signed in enumerate(offer.blocks, start=offer.first):
        if 0 < sequence <= len(kept) and signed.body != kept[sequence - 1].body:
            return [Finding("fork", sequence, f"block {sequence} was shown here with another content")]
    return []
