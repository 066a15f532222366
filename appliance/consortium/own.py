"""What only the site itself can tell: whether what stands in its name is what its receipts say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.consortium import block as blocks
from appliance.consortium.block import Head, Signed, Statement
from appliance.consortium.chain import TRAIN, Finding
from appliance.db.research import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone


def statement(receipt: Receipt, federation: str, head: Head) -> Statement:
    """Return what a receipt says, as a contribution under a head."""
    body = receipt.body
    return Statement(
        federation=federation,
        site=body["site"],
        kind=body["kind"],
        number=body["number"],
        plan=body["plan_sha256"],
        model=body["global_model_sha256"],
        update=body["update_sha256"],
        receipt=receipt.body_sha256,
        dataset=body["dataset_sha256"],
        samples=body["samples"],
        head_size=head.size,
        head_root=head.root,
        norm=blocks.stated_norm(body["update_norm"]) if body["kind"] == TRAIN else None,
    )


def check(session: Session, zone: ResearchZone, signed: Signed) -> Iterator[Finding]:
    """Compare what a block says about this site with its key and its receipts."""
    block = blocks.read_block(signed.body)
    site = zone.settings.federation.site
    key = blocks.public_hex(zone.keys.signing.public_key())
    for change in block.members:
        if change.site == site and change.key not in {"", key}:
            yield Finding("own_key", block.sequence, "the ledger names another key for this site")
    for one in block.contributions:
        if one.site == site and one.statement is not None:
            receipt = session.scalar(select(Receipt).where(Receipt.body_sha256 == one.statement.receipt))
            head = Head(one.statement.head_size, one.statement.head_root)
            own = None if receipt is None else statement(receipt, block.federation, head)
            if own is not None and one.statement.norm is None:  # said before norms were stated
                own = replace(own, norm=None)
            if own != one.statement:
                message = "a contribution in this site's name is not in its receipts"
                yield Finding("foreign_contribution", block.sequence, message)
