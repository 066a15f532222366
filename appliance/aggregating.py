"""A round that this site aggregates: the work of the research worker under swarm learning.

No local data has a part in it. The site aggregates a round alone in which it trained, on the same model, and
with its own update among the others as it left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs
from appliance.db.base import WorkState, new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Round
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.heartbeat import Heartbeat
    from appliance.node import ResearchZone
    from appliance.training import Work
    from appliance.work import Claim
    from trainer.federation.aggregation import Update
    from trainer.weights_io import Weights

ROUND_AGGREGATED: Final = "round.aggregated"
KIND: Final = "aggregate"
_TRAIN: Final = "train"

_LOG = logs.logger(__name__)


class NotOursError(ApplianceError):
    """What this site is to aggregate is not the round in which it trained."""


def aggregate(zone: ResearchZone, claim: Claim, work: Work, progress: Heartbeat) -> None:
    """Check and average the round's updates, and keep the model for the engine's process to fetch."""
    from trainer import weights_io  # noqa: PLC0415 - other work starts without it
    from trainer.federation import swarming  # noqa: PLC0415

    plan, row = work.plan, work.row
    arrays = weights_io.mapped(work.weights)
    model, updates = swarming.unbundle(arrays)
    _check_ours(zone, work, model, updates)
    progress("aggregate", 0, 1)
    made = swarming.combined(arrays, plan.strategy, plan.min_sites, plan.bounds)
    relative = f"federation/updates/{row.id}-{new_id()}.safetensors"
    digest = weights_io.save(zone.root / relative, made)
    with writing(zone.engine) as session:
        stored = session.get(Round, row.id)
        if stored is None:
            raise NotOursError("the round's row is gone")
        stored.output_path, stored.output_sha256 = relative, digest
        session.flush()
        body = {"round_id": row.id, "model_sha256": digest, "updates": len(updates)}
        zone.ledger.append(session, kind=ROUND_AGGREGATED, subject_id=row.id, body=body)
        claim.finish(session)
    _LOG.info(ROUND_AGGREGATED, round_id=row.id, updates=len(updates))


def _check_ours(zone: ResearchZone, work: Work, model: Weights, updates: list[Update]) -> None:
    """Raise NotOursError unless this site trained in the round, and its update is there as it left."""
    from trainer import strategies  # noqa: PLC0415
    from trainer.compression import draw_of  # noqa: PLC0415
    from trainer.federation.aggregation import fingerprint  # noqa: PLC0415
    from trainer.weights_io import load  # noqa: PLC0415

    row, plan = work.row, work.plan
    if not strategies.get(plan.strategy.name).led_by_site:
        raise NotOursError("the plan's strategy is not aggregated by sites")
    trained = select(Round).where(
        Round.protocol_id == row.protocol_id,
        Round.number == row.number,
        Round.kind == _TRAIN,
        Round.state == WorkState.DONE,
        Round.receipt_id.is_not(None),
        Round.global_model_sha256 == fingerprint(model),
    )
    with reading(zone.engine) as session:
        own = session.scalar(trained)
    sent = next((one for one in updates if one.site == row.site), None)
    if own is None or own.output_path is None or sent is None:
        raise NotOursError("this site did not train in the round on that model; expected its own update")
    update = load(zone.root / own.output_path)
    if plan.compression is not None:
        update = plan.compression.unpack(update, model, draw_of(plan.seed, row.site, row.number))
    if fingerprint(update) != fingerprint(sent.delta):
        raise NotOursError("this site's update is not what left here")
