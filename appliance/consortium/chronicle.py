"""The coordinator's side: blocks are appended with what they tell of, and sites' countersignatures kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.consortium import block as blocks
from appliance.consortium.block import (
    Block,
    Contribution,
    Countersigned,
    MemberChange,
    Signed,
    SignedShare,
)
from appliance.consortium.chain import Chain
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.followed import following
from appliance.consortium.offers import Countersignature, Offer, chunk
from appliance.db import coordinator as tables
from appliance.db.engine import reading, writing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


@dataclass(frozen=True)
class Entry:
    """What a block tells of; see :class:`appliance.consortium.block.Block`."""

    kind: str
    plan: str = ""
    round: int = 0
    model_in: str = ""
    model_out: str = ""
    contributions: tuple[Contribution, ...] = ()
    members: tuple[MemberChange, ...] = ()
    share: SignedShare | None = None


def append(session: Session, key: Ed25519PrivateKey, entry: Entry) -> None:
    """Append a block in the caller's writing transaction, after one with the members where these changed."""
    with _followed(session) as chain:
        _append_members(session, key, chain, always=chain.size == 0)
        _append(session, key, chain, entry)


def append_members(session: Session, key: Ed25519PrivateKey) -> None:
    """Append a block with what changed among the members, if anything did, in the caller's transaction."""
    with _followed(session) as chain:
        _append_members(session, key, chain)


def stored(session: Session) -> list[Signed]:
    """Return all blocks."""
    table = tables.ConsortiumBlock
    rows = session.execute(select(table.body, table.signature).order_by(table.sequence))
    return [Signed(body, signature) for body, signature in rows]


def _followed(session: Session) -> AbstractContextManager[Chain]:
    session.flush()
    return following(session, 0, stored(session))


@dataclass(repr=False)
class Chronicle:
    """Reads and extends the ledger in a coordinator's database; remembers what it has checked already."""

    engine: Engine
    key: Ed25519PrivateKey
    _chain: Chain = field(default_factory=Chain)
    _stored: list[Signed] = field(default_factory=list)

    def open_run(self, plan: str, number: int, model: str) -> None:
        """Begin a run's chapter with the model that it stands at, unless it has one."""
        with writing(self.engine) as session:
            with _followed(session) as chain:
                has_begun = plan in chain.newest
            if has_begun:
                append_members(session, self.key)
            else:
                append(session, self.key, Entry(blocks.RUN, plan, number, "", model))

    def begin(self) -> None:
        """Begin the chain with the members, where no run has begun it."""
        with writing(self.engine) as session:
            append_members(session, self.key)

    def take_share(self, signed: SignedShare) -> None:
        """Append a step of sharing.

        Raises
        ------
        ConsortiumError
            If its site has not signed it, or it does not follow what stands there.
        """
        self.chain()
        with writing(self.engine) as session, _followed(session) as chain:
            _append_members(session, self.key, chain, always=chain.size == 0)
            for finding in chain.check_share(signed):
                raise ConsortiumError(finding.message)
            _append(session, self.key, chain, Entry(blocks.SHARE, share=signed))

    def offer_from(self, first: int) -> Offer:
        """Offer the blocks from a number on, as many as one message takes."""
        chain = self.chain()
        signature = blocks.sign_head(chain.federation, chain.head, self.key, "coordinator")
        return chunk(self._stored, max(1, min(first, chain.size)), chain.head, signature)

    def offer(self, sites: Iterable[str]) -> Offer:
        """Offer what the one of ``sites`` that is furthest behind has not countersigned yet.

        The newest block of each site's head is offered once more, so that it can compare.
        """
        with reading(self.engine) as session:
            sizes = {one.site: one.size for one in countersigned(session)}
        return self.offer_from(min([sizes.get(site, 0) for site in sites], default=0))

    def chain(self) -> Chain:
        """Return the chain as it stands, checked.

        Raises
        ------
        ConsortiumError
            If a block is wrong: somebody changed the coordinator's database.
        """
        with reading(self.engine) as session:
            rows = stored(session)
        if rows[: len(self._stored)] != self._stored:
            raise ConsortiumError("the consortium's ledger was changed while the coordinator was running")
        for signed in rows[len(self._stored) :]:
            found = self._chain.take(signed)
            if found:
                raise ConsortiumError(f"consortium's ledger, block {found[0].sequence}: {found[0].message}")
            self._stored.append(signed)
        return self._chain

    def take_countersignature(self, site: str, said: Countersignature) -> str:
        """Keep a site's countersignature; return what is wrong with it, empty when nothing is.

        The site's key has to be known: see :func:`appliance.federation.members.pin`.
        """
        chain = self.chain()
        one = Countersigned(site, said.head.size, said.head.root, said.signature)
        for finding in chain.check_countersigned(one):
            return finding.code
        if not 0 < one.size <= chain.size:
            return "fork"
        with writing(self.engine) as session:
            row = session.get(tables.Countersignature, site)
            if row is None:
                row = tables.Countersignature(site=site, size=0, root="", signature="")
                session.add(row)
            if row.size < one.size:
                row.size, row.root, row.signature = one.size, one.root, one.signature
        return ""


def countersigned(session: Session) -> tuple[Countersigned, ...]:
    """Return the newest head of each site."""
    rows = session.scalars(select(tables.Countersignature).order_by(tables.Countersignature.site))
    return tuple(Countersigned(row.site, row.size, row.root, row.signature) for row in rows)


def _append_members(session: Session, key: Ed25519PrivateKey, chain: Chain, *, always: bool = False) -> None:
    """Append what changed among the members, if anything did or it is asked for ``always``."""
    rows = session.scalars(select(tables.Member).order_by(tables.Member.name))
    now = [MemberChange(row.name, str(row.state), row.signing_key or "") for row in rows]
    changes = tuple(one for one in now if chain.members.get(one.site) != (one.state, one.key))
    if changes or always:
        _append(session, key, chain, Entry(blocks.MEMBERS, members=changes))


def _append(session: Session, key: Ed25519PrivateKey, chain: Chain, entry: Entry) -> None:
    """Seal a block with the heads that stand in none yet, keep it, and let the chain follow it."""
    public = blocks.public_hex(key.public_key())
    heads = countersigned(session)
    block = Block(
        version=blocks.VERSION,
        federation=blocks.federation_id(public),
        coordinator=public,
        sequence=chain.size + 1,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        previous=chain.hashes[-1] if chain.hashes else blocks.GENESIS,
        prior_root=chain.tree.root(),
        kind=entry.kind,
        plan=entry.plan,
        round=entry.round,
        model_in=entry.model_in,
        model_out=entry.model_out,
        contributions=entry.contributions,
        members=entry.members,
        share=entry.share,
        countersigned=tuple(one for one in heads if one.size > chain.countersigned.get(one.site, 0)),
    )
    signed = blocks.seal(block, key)
    session.add(tables.ConsortiumBlock(sequence=block.sequence, body=signed.body, signature=signed.signature))
    session.flush()
    chain.follow(block, signed)
