"""The first model of each plan that trains here, drawn once from the plan's seed and kept until its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from appliance.db.base import now
from appliance.db.engine import reading
from appliance.db.research import Protocol, ProtocolState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.node import ResearchZone
    from trainer.federation.plan import Plan
    from trainer.weights_io import Array

_OVER = (ProtocolState.REFUSED, ProtocolState.LEFT)


def check(zone: ResearchZone, plan: Plan, weights: Mapping[str, Array], rounds: int) -> None:
    """Check a global model against the first one, see :func:`trainer.first_model.check_reachable`."""
    from trainer.first_model import check_reachable, is_bounded  # noqa: PLC0415 - torch loads here

    if is_bounded(plan, rounds):
        check_reachable(plan, weights, rounds, _first(zone, plan))


def remove(root: Path, plan_sha256: str) -> None:
    """Remove the first model of a plan whose run is over."""
    _path(root, plan_sha256).unlink(missing_ok=True)


def _first(zone: ResearchZone, plan: Plan) -> Mapping[str, Array]:
    from trainer.first_model import first_model  # noqa: PLC0415 - torch loads here
    from trainer.weights_io import Stored  # noqa: PLC0415 - numpy loads here

    path = _path(zone.root, plan.sha256)
    if path.is_file():
        return Stored(path)
    _remove_others(zone)
    return Stored.write(path, first_model(plan.task, plan.strategy.name, plan.seed))


def _remove_others(zone: ResearchZone) -> None:
    """Remove those of plans that nothing will run of any more."""
    with reading(zone.engine) as session:
        ended = or_(Protocol.state.in_(_OVER), Protocol.expires_at <= now())
        over = session.scalars(select(Protocol.plan_sha256).where(ended)).all()
    for plan_sha256 in over:
        remove(zone.root, plan_sha256)


def _path(root: Path, plan_sha256: str) -> Path:
    return root / "federation" / "firsts" / f"{plan_sha256}.safetensors"
