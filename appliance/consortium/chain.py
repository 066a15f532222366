"""The rules of the chain: a pure check of one block after the other against all before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from appliance.consortium import block as blocks
from appliance.consortium.block import (
    Block,
    Contribution,
    Countersigned,
    Head,
    Share,
    Signed,
    SignedShare,
    Statement,
)
from appliance.consortium.errors import BlockFormError
from appliance.consortium.merkle import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TRAIN: Final = "train"
FINALIZE: Final = "finalize"
# Who takes a step of sharing, and after which other one.
_AFTER: Final = {
    "given": ("giver", ("",)),
    "received": ("receiver", ("given",)),
    "withdrawn": ("giver", ("given", "received")),
    "erased": ("receiver", ("received", "withdrawn")),
}


@dataclass(frozen=True)
class Finding:
    """What is wrong at one block; ``code`` says which rule it breaks."""

    code: str
    sequence: int
    message: str


class Chain:
    """The blocks that were checked so far, and what follows from them.

    A block is taken with :meth:`take`; what was stored after such a check comes back with :meth:`replay`.
    """

    def __init__(self) -> None:
        self.tree = Tree()
        self.hashes: list[str] = []
        self.federation = ""
        self.coordinator = ""
        self.members: dict[str, tuple[str, str]] = {}  # site -> (state, key)
        self.models: dict[tuple[str, int], str] = {}  # (plan, round) -> model after it
        self.newest: dict[str, int] = {}  # plan -> newest round
        self.shares: dict[str, Share] = {}  # manifest -> newest step
        self.countersigned: dict[str, int] = {}  # site -> size of its newest head that stands in a block

    @property
    def size(self) -> int:
        """How many blocks there are."""
        return len(self.hashes)

    @property
    def head(self) -> Head:
        """The present head."""
        return Head(self.size, self.tree.root())

    @classmethod
    def replay(cls, stored: Iterable[Signed]) -> Chain:
        """Take up blocks that were checked before they were stored.

        Raises
        ------
        BlockFormError
            If one of them cannot be read any more.
        """
        chain = cls()
        chain.continue_with(stored)
        return chain

    def continue_with(self, stored: Iterable[Signed]) -> None:
        """Take up more blocks that were checked before; raises as :meth:`replay` does."""
        for signed in stored:
            self.follow(blocks.read_block(signed.body), signed)

    def take(self, signed: Signed) -> list[Finding]:
        """Check a block; without a finding it is the chain's newest from now on."""
        try:
            block = blocks.read_block(signed.body)
        except BlockFormError as error:
            return [Finding("form", self.size + 1, str(error))]
        found = list(self._check(block, signed))
        if not found:
            self.follow(block, signed)
        return found

    def follow(self, block: Block, signed: Signed) -> None:
        """Take up a block that was checked before, or made here."""
        self.federation, self.coordinator = block.federation, block.coordinator
        self.tree.append(signed.block_hash)
        self.hashes.append(signed.block_hash)
        for change in block.members:
            self.members[change.site] = (change.state, change.key or self.key(change.site))
        for one in block.countersigned:
            self.countersigned[one.site] = max(one.size, self.countersigned.get(one.site, 0))
        if block.share is not None:
            self.shares[block.share.share.manifest] = block.share.share
        if block.kind in {blocks.RUN, blocks.ROUND}:
            self.models[(block.plan, block.round)] = block.model_out
            self.newest[block.plan] = block.round

    def key(self, site: str) -> str:
        """Return a member's key; empty when it is not known."""
        return self.members.get(site, ("", ""))[1]

    def check_head(self, head: Head, signature: str) -> Iterator[Finding]:
        """Compare a head that the coordinator signed with the chain; an older one may come late."""
        message = blocks.head_message(self.federation, head, "coordinator")
        if not blocks.verified(self.coordinator, signature, message):
            yield Finding("head_signature", head.size, "the head is not signed by this chain's coordinator")
        elif head.size <= self.size and self.tree.root(head.size) != head.root:
            yield Finding("fork", head.size, "the coordinator signed another history")

    def check_countersigned(self, one: Countersigned, *, whole: bool = False) -> Iterator[Finding]:
        """Compare a head that a site countersigned with the chain.

        A longer head than the chain says that the chain's tail is gone, if it is meant to be ``whole``.
        """
        head = Head(one.size, one.root)
        signed = blocks.head_message(self.federation, head, "site")
        if not blocks.verified(self.key(one.site), one.signature, signed):
            yield Finding("countersignature", one.size, f"not the countersignature of site {one.site}")
        elif 0 < one.size <= self.size and self.tree.root(one.size) != one.root:
            yield Finding("fork", one.size, f"site {one.site} countersigned another history")
        elif whole and one.size > self.size:
            message = f"blocks {self.size + 1} to {one.size}, which site {one.site} countersigned, are gone"
            yield Finding("tail", self.size + 1, message)

    def check_statement(self, statement: Statement, signature: str) -> Iterator[Finding]:
        """Check who signed a contribution, and which history that site saw."""
        message = blocks.statement_message(statement)
        return self._check_said("contribution", statement, signature, message)

    def check_share(self, signed: SignedShare) -> Iterator[Finding]:
        """Check who signed a step of sharing, which history that site saw, and whether the step follows."""
        share, before = signed.share, self.shares.get(signed.share.manifest)
        yield from self._check_said("share", share, signed.signature, blocks.share_message(share))
        role, after = _AFTER[share.step]
        same = before is None or replace(share, **_own(before)) == before
        if share.site != getattr(share, role) or (before.step if before else "") not in after or not same:
            yield Finding("share", self.size + 1, f"the step {share.step} does not follow the one before it")
        if share.step == "given":
            state, key = self.members.get(share.receiver, ("", ""))
            if state != "active" or not key or share.receiver == share.giver:
                yield Finding("share", self.size + 1, f"{share.receiver} is no other active member")

    def _check_said(
        self, code: str, said: Statement | Share, signature: str, message: bytes
    ) -> Iterator[Finding]:
        sequence, site = self.size + 1, said.site
        if not blocks.verified(self.key(site), signature, message):
            yield Finding(code, sequence, f"the {code} is not signed by site {site}")
        elif said.federation != self.federation:
            yield Finding(code, sequence, f"the {code} of site {site} is of another federation")
        elif not 0 < said.head_size <= self.size:
            yield Finding("fork", sequence, f"site {site} saw a history that is longer than this one")
        elif self.tree.root(said.head_size) != said.head_root:
            yield Finding("fork", said.head_size, f"site {site} saw another history")

    def _check(self, block: Block, signed: Signed) -> Iterator[Finding]:
        sequence = self.size + 1
        coordinator = self.coordinator or block.coordinator
        if not blocks.is_sealed_by(signed, coordinator):
            yield Finding("signature", sequence, "the block is not signed by this chain's coordinator")
            return
        if block.sequence != sequence:
            yield Finding("sequence", sequence, f"expected block {sequence}, found block {block.sequence}")
        if block.previous != (self.hashes[-1] if self.hashes else blocks.GENESIS):
            yield Finding("link", sequence, "the block does not follow the one before it")
        if block.prior_root != self.tree.root():
            yield Finding("root", sequence, "the block names another tree of the blocks before it")
        federation = blocks.federation_id(coordinator)
        if block.coordinator != coordinator or block.federation != federation:
            yield Finding("federation", sequence, "the block is of another federation")
        if not self.hashes and block.kind != blocks.MEMBERS:
            yield Finding("genesis", sequence, "expected the members in the first block")
        yield from self._check_members(block)
        yield from self._check_models(block)
        for one in block.countersigned:
            yield from self.check_countersigned(one)
            if one.size > self.size:
                yield Finding("fork", sequence, f"site {one.site} countersigned blocks that come later")
        yield from self._check_said_in(block)

    def _check_said_in(self, block: Block) -> Iterator[Finding]:
        """Check what sites signed in a block."""
        for contribution in block.contributions:
            yield from self._check_contribution(block, contribution)
        if block.share is not None:
            yield from self.check_share(block.share)
        if (block.kind == blocks.SHARE) != (block.share is not None):
            yield Finding("share", block.sequence, "expected a step of sharing in a block of that kind alone")

    def _check_members(self, block: Block) -> Iterator[Finding]:
        for change in block.members:
            known = self.key(change.site)
            if known and change.key != known:
                yield Finding("member_key", block.sequence, f"another key of site {change.site}")

    def _check_models(self, block: Block) -> Iterator[Finding]:
        """Say whether a round starts from the model that the one before it made."""
        known = block.plan in self.newest
        if block.kind == blocks.RUN:
            right = not known and block.model_out != ""
        elif block.kind == blocks.ROUND:
            before = self.models.get((block.plan, block.round - 1))
            right = known and self.newest[block.plan] == block.round - 1 and block.model_in == before
        elif block.kind == blocks.FINAL:
            right = known and self.models.get((block.plan, block.round)) == block.model_out
        else:
            right = block.plan == block.model_in == block.model_out == "" and not block.contributions
        if not right:
            yield Finding("model", block.sequence, "the block does not go on from the model before it")
        if len({one.site for one in block.contributions}) != len(block.contributions):
            yield Finding("contribution", block.sequence, "a site stands in the round twice")

    def _check_contribution(self, block: Block, one: Contribution) -> Iterator[Finding]:
        said = one.statement
        if said is None:
            if one.accepted:
                yield Finding("contribution", block.sequence, f"site {one.site} counts without its signature")
            return
        yield from self.check_statement(said, one.signature)
        model = block.model_in if block.kind == blocks.ROUND else block.model_out
        kind = TRAIN if block.kind == blocks.ROUND else FINALIZE
        place = (said.site, said.kind, said.plan, said.number, said.model)
        if place != (one.site, kind, block.plan, block.round, model) or one.samples > said.samples:
            message = f"the contribution of site {one.site} is one to another round"
            yield Finding("contribution", block.sequence, message)


def _own(share: Share) -> dict[str, Any]:
    """Return what each step says anew; all else stays as it was given."""
    return {
        "site": share.site,
        "step": share.step,
        "head_size": share.head_size,
        "head_root": share.head_root,
    }


def audit(stored: Iterable[Signed]) -> tuple[Chain, list[Finding]]:
    """Check a whole chain from its first block; stop at the first block that is wrong."""
    chain = Chain()
    for signed in stored:
        found = chain.take(signed)
        if found:
            return chain, found
    return chain, []
