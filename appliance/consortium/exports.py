"""A replica as a file: for another site to compare, or for a third party to check without any database."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from appliance import durable
from appliance.consortium import block as blocks
from appliance.consortium import merkle
from appliance.consortium.block import Countersigned, Head, Signed
from appliance.consortium.chain import Chain, Finding, audit
from appliance.consortium.errors import BlockFormError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

REPLICA: Final = "cloister-consortium-replica-1"
PROOF: Final = "cloister-consortium-proof-1"
MAX_FILE: Final = 1024 * 1024 * 1024


@dataclass(frozen=True)
class Exported:
    """A replica: its blocks, and heads that sites countersigned outside of them."""

    blocks: tuple[Signed, ...]
    heads: tuple[Countersigned, ...]


def write(path: Path, exported: Exported) -> None:
    """Write a replica's file; it holds no patient's value and no secret."""
    content = {"format": REPLICA, **asdict(exported)}
    durable.write_whole(path, json.dumps(content, indent=1).encode("ascii"))


def read(path: Path) -> Exported:
    """Read a replica's file; raises BlockFormError when it is none."""
    content = _load(path, REPLICA)
    listed, heads = content.get("blocks"), content.get("heads")
    if not isinstance(listed, list) or not isinstance(heads, list):
        raise BlockFormError(f"{path.name}: expected blocks and heads")
    return Exported(
        tuple(_signed(path, one) for one in listed), tuple(blocks.read_countersigned(one) for one in heads)
    )


def check(exported: Exported) -> tuple[Chain, list[Finding]]:
    """Check a replica from its first block on, and against every head that was countersigned."""
    chain, found = audit(exported.blocks)
    if not found:
        for one in exported.heads:
            found.extend(chain.check_countersigned(one, whole=True))
    return chain, found


def compare(chain: Chain, stored: Sequence[Signed], other: Exported) -> Iterator[Finding]:
    """Compare a checked chain with another site's replica: one of them is the beginning of the other."""
    theirs, found = check(other)
    yield from found
    for sequence, (mine, their) in enumerate(zip(stored, other.blocks, strict=False), start=1):
        if mine.body != their.body:
            yield Finding("fork", sequence, f"block {sequence} differs from the other replica's")
            return
    if theirs.size > chain.size:
        message = f"blocks {chain.size + 1} to {theirs.size}, which the other replica has, are not here"
        yield Finding("tail", chain.size + 1, message)


def prove(chain: Chain, stored: Sequence[Signed], sequence: int, prior: int | None) -> dict[str, Any]:
    """Return what shows a third party that a block is in the history; ``prior`` adds a consistency proof.

    Raises
    ------
    BlockFormError
        If there is no such block.
    """
    if not 1 <= sequence <= chain.size or (prior is not None and not 1 <= prior <= chain.size):
        raise BlockFormError(f"expected a block from 1 to {chain.size}")
    content: dict[str, Any] = {
        "format": PROOF,
        "sequence": sequence,
        "block": asdict(stored[sequence - 1]),
        "head": asdict(chain.head),
        "inclusion": chain.tree.inclusion(sequence),
        "countersigned": [],
        "members": {site: key for site, (_, key) in chain.members.items() if key},
    }
    if prior is not None:
        content["prior"] = {"size": prior, "root": chain.tree.root(prior)}
        content["consistency"] = chain.tree.consistency(prior)
    return content


def check_proof(path: Path) -> tuple[blocks.Block, Head, list[Finding], list[str]]:
    """Check a proof's file; return block, head, what is wrong, and the sites that countersigned this head.

    Raises
    ------
    BlockFormError
        If it is none.
    """
    content = _load(path, PROOF)
    try:
        signed, head = _signed(path, content["block"]), Head(**content["head"])
        block = blocks.read_block(signed.body)
        heads = [blocks.read_countersigned(one) for one in content["countersigned"]]
        keys = {str(site): str(key) for site, key in content["members"].items()}
        found = list(_proof_findings(content, signed, block, head))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BlockFormError(f"{path.name}: expected a proof") from error
    message = blocks.head_message(block.federation, head, "site")
    by = []
    for one in heads:
        if (one.size, one.root) == (head.size, head.root) and blocks.verified(
            keys.get(one.site, ""), one.signature, message
        ):
            by.append(one.site)
        else:
            found.append(
                Finding("countersignature", head.size, f"not the countersignature of site {one.site}")
            )
    return block, head, found, by


def _proof_findings(
    content: Mapping[str, Any], signed: Signed, block: blocks.Block, head: Head
) -> Iterator[Finding]:
    sequence = int(content["sequence"])
    if not blocks.is_sealed_by(signed, block.coordinator):
        yield Finding("signature", sequence, "the block is not signed by the coordinator that it names")
    if block.sequence != sequence or block.federation != blocks.federation_id(block.coordinator):
        yield Finding("sequence", sequence, "the block is another one")
    if not merkle.includes(content["inclusion"], signed.block_hash, sequence, head.size, head.root):
        yield Finding("inclusion", sequence, "the block is not in the tree of this head")
    if "prior" in content:
        prior = (int(content["prior"]["size"]), str(content["prior"]["root"]))
        if not merkle.continues(content["consistency"], prior, (head.size, head.root)):
            yield Finding("consistency", prior[0], "the head does not continue the prior one")


def _load(path: Path, kind: str) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise BlockFormError(f"{path.name}: larger than {MAX_FILE} bytes")
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError) as error:
        raise BlockFormError(f"{path.name}: cannot be read; expected {kind}") from error
    if not isinstance(content, dict) or content.get("format") != kind:
        raise BlockFormError(f"{path.name}: expected {kind}")
    return content


def _signed(path: Path, value: object) -> Signed:
    if not isinstance(value, dict) or not all(
        isinstance(value.get(name), str) for name in ("body", "signature")
    ):
        raise BlockFormError(f"{path.name}: expected blocks of body and signature")
    return Signed(value["body"], value["signature"])
