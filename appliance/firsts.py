"""What a site knows of a plan's models: the first, drawn once from its seed, and those that it trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from appliance.consortium import replica
from appliance.consortium.block import ROUND
from appliance.db.base import WorkState, now
from appliance.db.engine import reading
from appliance.db.research import Protocol, ProtocolState, Round
from appliance.federation import sitekeys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.consortium.block import Block
    from appliance.node import ResearchZone
    from trainer.encryption.ckks import Key
    from trainer.federation.plan import Plan
    from trainer.peers import Peer
    from trainer.weights_io import Array

_MOST_SITES = 100  # of a round that the ledger does not tell of
_OVER = (ProtocolState.REFUSED, ProtocolState.LEFT)


def check(
    zone: ResearchZone, plan: Plan, row: Round, weights: Mapping[str, Array], key: Key | None = None
) -> None:
    """Check a round's global model against the last one that this site knows, else against the first.

    How far it can have moved since then say the norms that sites signed in the consortium's ledger.

    Parameters
    ----------
    weights : Mapping
        The model, readable.
    key : Key, optional
        Of an encrypted run.

    Raises
    ------
    UnfitModelError
        See :func:`trainer.first_model.check_reachable`.
    """
    from trainer.errors import UnfitModelError, WeightsError  # noqa: PLC0415 - other work starts without it
    from trainer.first_model import FIRST, check_reachable, is_bounded, reach  # noqa: PLC0415 - torch loads
    from trainer.weights_io import Stored  # noqa: PLC0415 - numpy loads here

    rounds = row.number - 1
    if not is_bounded(plan, rounds):
        return
    with reading(zone.engine) as session:
        blocks = replica.rounds_of(session, plan.sha256)
        last = _last(session, zone.root, row, blocks)
    norms = [_norms(plan, blocks, number) for number in range(1, row.number)]
    if last is not None:
        try:
            known: Mapping[str, Array] = Stored(zone.root / last.input_path)
            if key is not None:
                known = sitekeys.readable(key, plan, known, last.number - 1)
            before = f"the model of round {last.number}"
            check_reachable(weights, known, reach(plan, norms, last.number - 1, known), before)
        except UnfitModelError:
            raise
        except WeightsError:
            if (zone.root / last.input_path).is_file():
                raise
            last = None  # newer models took its place just now
    if last is None and not plan.initial_sha256:
        first = _first(zone, plan)
        check_reachable(weights, first, reach(plan, norms, 0, first), FIRST)


def check_peer(
    zone: ResearchZone, plan: Plan, row: Round, own: Peer, now: Mapping[str, Array], earlier: Peer | None
) -> None:
    """Check the model that a site with one of its own trains in a round, made of what came to it by mail.

    It must lie where the rounds so far can have brought any site's model.

    Parameters
    ----------
    own : Peer
        What the site holds, before it merged models for this round.
    now : Mapping
        The model that is to be trained.
    earlier : Peer, optional
        What the site held before its last round; None before that.

    Raises
    ------
    UnfitModelError
        See :func:`trainer.first_model.check_reachable`.
    """
    from trainer.first_model import FIRST, check_reachable, reach_of_peers  # noqa: PLC0415 - torch loads
    from trainer.peers import Past  # noqa: PLC0415

    with reading(zone.engine) as session:
        blocks = replica.rounds_of(session, plan.sha256)
    stated = [_stated(plan, blocks, number) for number in range(1, row.number)]
    past = [Past({"": plan.max_update_norm}, told=False) if one is None else Past(one) for one in stated]
    far = reach_of_peers(plan, past, now)
    if not plan.initial_sha256:
        first = _first(zone, plan)
        if not own.version:
            check_reachable(own.weights, first, 0.0, FIRST)
        check_reachable(now, first, far, FIRST)
    elif earlier is not None:  # no farther from the start than the other
        check_reachable(now, earlier.weights, 2 * far, "this site's earlier model")


def remove(root: Path, plan_sha256: str) -> None:
    """Remove the first model of a plan whose run is over."""
    _path(root, plan_sha256).unlink(missing_ok=True)


def _last(session: Session, root: Path, row: Round, blocks: Mapping[int, Block]) -> Round | None:
    """Return the last round that was trained here whose model is still here, and in the ledger."""
    trained = select(Round).where(
        Round.protocol_id == row.protocol_id,
        Round.kind == "train",
        Round.state == WorkState.DONE,
        Round.number < row.number,
    )
    for one in session.scalars(trained.order_by(Round.number.desc())):
        block = blocks.get(one.number - 1)
        named = block is not None and block.model_out == one.global_model_sha256
        if named and (root / one.input_path).is_file():
            return one
    return None


def _norms(plan: Plan, blocks: Mapping[int, Block], number: int) -> list[float]:
    """Return the norms of the updates that counted in a round; the plan's bound where a site stated none.

    A round to which nobody contributed is one that moved nothing.
    """
    stated = _stated(plan, blocks, number)
    if stated is None:
        return [plan.max_update_norm] * _MOST_SITES
    return list(stated.values()) or [0.0]


def _stated(plan: Plan, blocks: Mapping[int, Block], number: int) -> dict[str, float] | None:
    """Return by site the norm of its update that counted; None where the ledger has no such round."""
    block = blocks.get(number)
    if block is None or block.kind != ROUND:
        return None
    counted = [one for one in block.contributions if one.accepted]
    longest = {one.site: None if one.statement is None else one.statement.longest for one in counted}
    return {site: plan.max_update_norm if norm is None else norm for site, norm in longest.items()}


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
