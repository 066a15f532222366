"""The consortium's history as people see it: rounds, who contributed, which data, which model, findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.consortium import block as blocks
from appliance.consortium import replica
from appliance.consortium.selection import still_here
from appliance.db.research import ConsortiumFinding, Protocol, StudyShare
from appliance.federation import views

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.consortium.block import Block, Signed
    from appliance.node import ResearchZone

NEWEST: Final = 200


def history(session: Session, limit: int = NEWEST) -> views.ConsortiumView:
    """Return the newest blocks of this site's replica, and all findings."""
    stored = replica.current(session)
    read = [(signed, blocks.read_block(signed.body)) for signed in stored[-limit:]]
    names = {row.plan_sha256: row.name for row in session.scalars(select(Protocol))}
    sizes: dict[str, int] = {}
    for _, block in read:
        sizes.update({one.site: one.size for one in block.countersigned})
    head = replica.head(session)
    found = session.scalars(select(ConsortiumFinding).order_by(ConsortiumFinding.found_at.desc()))
    return views.ConsortiumView(
        size=len(stored),
        root=head.root if head is not None else "",
        countersigned_at=head.at if head is not None and head.countersignature else None,
        blocks=tuple(_block(signed, block, names, sizes) for signed, block in reversed(read)),
        findings=tuple(
            views.ConsortiumFindingView(
                row.id, row.code, row.sequence, row.message, row.found_at, row.resolved_at, row.resolved_by
            )
            for row in found
        ),
    )


def shares(session: Session, zone: ResearchZone) -> list[views.ShareView]:
    """Return what this site gave and received, newest first."""
    statement = select(StudyShare).order_by(StudyShare.created_at.desc(), StudyShare.id)
    rows = list(session.scalars(statement))
    here = still_here(session) if rows else set()
    return [share(zone, row, here) for row in rows]


def share(zone: ResearchZone, row: StudyShare, here: set[str]) -> views.ShareView:
    """Return one share as people see it; ``here``: of :func:`still_here`."""
    given = row.giver == zone.settings.federation.site
    digests = [one["sha256"] for one in row.manifest["files"]]
    return views.ShareView(
        id=row.id,
        manifest_sha256=row.manifest_sha256,
        giver=row.giver,
        receiver=row.receiver,
        given=given,
        step=row.step or "prepared",
        pending=row.pending["share"]["step"] if row.pending is not None else None,
        studies=row.manifest["studies"],
        subjects=row.manifest["subjects"],
        instances=len(digests),
        ethics_number=row.manifest["ethics_number"],
        purpose=row.manifest["purpose"],
        folder=str(zone.root / row.path) if row.path and row.step != "erased" else None,
        no_longer_here=len(set(digests) - here) if given else 0,
        decided_by=row.decided_by,
        at=row.created_at,
    )


def _block(
    signed: Signed, block: Block, names: dict[str, str], sizes: dict[str, int]
) -> views.ConsortiumBlockView:
    return views.ConsortiumBlockView(
        sequence=block.sequence,
        at=block.at,
        kind=block.kind,
        run=names.get(block.plan, block.plan[:12]),
        round=block.round,
        model_sha256=block.model_out,
        block_hash=signed.block_hash,
        contributions=tuple(
            views.ConsortiumPart(
                one.site, one.accepted, one.samples, one.statement.dataset if one.statement else ""
            )
            for one in block.contributions
        ),
        members=tuple(f"{one.site}: {one.state}" for one in block.members),
        countersigned_by=tuple(sorted(site for site, size in sizes.items() if size >= block.sequence)),
        share=share_words(block),
    )


def share_words(block: Block) -> str:
    """Say which step of sharing a block tells of; empty where it tells of none."""
    if block.share is None:
        return ""
    said = block.share.share
    return (
        f"{said.giver} to {said.receiver}: {said.step}, {said.studies} studies, {said.instances} instances,"
        f" list {said.manifest[:12]}"
    )
