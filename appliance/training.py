"""A round's work in the research worker: train and keep the update, or evaluate and export the model.

The row is done in the very transaction that names the output, so a round that is worked on twice, by two
deliveries or after a worker's death, has one update and is counted once.
"""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from appliance import aggregating, datasets, firsts, logs, peering, sitestate, space
from appliance.children import keep_freed_arrays, return_freed_memory
from appliance.consortium.replica import was_counted
from appliance.db.base import new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, Round
from appliance.errors import ApplianceError
from appliance.federation import refusals, roundfiles, sitekeys
from appliance.federation.envelope import EnvelopeError
from appliance.heartbeat import HaltedError, Heartbeat, check_halt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone
    from appliance.work import Claim
    from trainer.encryption.ckks import Key
    from trainer.federation.plan import Plan
    from trainer.local_round import LocalUpdate, Packing
    from trainer.weights_io import Array, Weights

ROUND_TRAINED: Final = "round.trained"
MODEL_EXPORTED: Final = "model.exported"
TRAIN: Final = "train"
FINALIZE: Final = "finalize"
_LOOK_AGAIN_S: Final = 60.0
_LIBRARIES: Final = "trainer.local_round"  # torch with it

_LOG = logs.logger(__name__)


class RoundError(ApplianceError):
    """A round that cannot be worked on, now or later."""


@dataclass(frozen=True, eq=False)
class Work:
    """All that a round needs, checked: the row as claimed, its approved plan, the global model.

    ``own`` is what the strategy kept at this site; most keep nothing. ``packing`` says how the update is made
    small, None sends it as it is. With ``key`` it is encrypted.
    """

    row: Round
    plan: Plan
    weights: Mapping[str, Array]
    own: Weights
    packing: Packing | None = None
    key: Key | None = None

    def leaving(self, update: LocalUpdate) -> Weights:
        """Return an update as it leaves: encrypted where the plan says so."""
        if self.key is None:
            return update.leaving
        from trainer.encryption.model import encrypted  # noqa: PLC0415 - the scheme's library loads here

        return encrypted(self.key, update.leaving, self.plan.turns, self.row.number)


def run_round(zone: ResearchZone, claim: Claim) -> None:
    """Do a claimed round: kind ``train``, ``aggregate``, ``send`` or ``finalize``.

    What no second try could mend (a withdrawn protocol, a model that does not fit, no usable case) makes the
    row dead with its reason; anything else is left to the claim, which tries again.
    """
    from trainer.errors import TrainerError, UnfitModelError  # noqa: PLC0415

    if space.grade_of(zone.settings.dicom, zone.root) >= space.Grade.NO_TRAINING:
        claim.postpone("little free space is left: receiving comes first", _LOOK_AGAIN_S)
        return
    progress, trained = Heartbeat(claim), False
    try:
        check_halt(claim)
        progress("load", 0, 1)
        _load_libraries()
        work = _load(zone, claim.row_id)
        _prepare_process(zone)
        progress("load", 1, 1)
        _KINDS[work.row.kind](zone, claim, work, progress)
        trained = work.row.kind == TRAIN
        if work.row.kind == FINALIZE:
            roundfiles.remove_mail(zone.root, work.row.protocol_id)
            firsts.remove(zone.root, work.plan.sha256)
    except HaltedError as error:
        with writing(zone.engine) as session:
            _again(session, claim.row_id).halted_by = error.code
            session.flush()
            claim.die(str(error), session)
    except UnfitModelError as error:
        with writing(zone.engine) as session:
            refusals.note(session, zone.ledger, refusals.UNFIT_MODEL, claim.row.protocol_id)
            claim.die(logs.safe_reason(error), session)
    except (
        RoundError,
        EnvelopeError,
        aggregating.NotOursError,
        peering.PeeringError,
        sitestate.SiteStateError,
        TrainerError,
    ) as error:
        claim.die(logs.safe_reason(error))
    finally:
        if not trained:  # the next round takes as much again; a process without one ends soon
            return_freed_memory()


def _train(zone: ResearchZone, claim: Claim, work: Work, progress: Heartbeat) -> None:
    from trainer.local_round import local_round  # noqa: PLC0415 - torch loads here
    from trainer.simulation import round_seed  # noqa: PLC0415

    plan, row = work.plan, work.row
    built = datasets.build(zone, plan.task, progress)
    part = peering.begin(zone, work, len(built.dataset.train)) if plan.own_models else None
    update = local_round(
        plan.task,
        work.weights if part is None else part.now.weights,
        built.dataset,
        strategy=plan.strategy.name,
        strategy_parameters=plan.strategy.parameters,
        own=work.own if part is None else {},
        max_norm=plan.max_update_norm,
        number=row.number,
        seed=round_seed(plan.seed, row.site, row.number),
        privacy=plan.privacy,
        packing=work.packing,
        progress=progress,
    )
    with progress.during("encrypt") if work.key is not None else nullcontext():
        leaving, own = (work.leaving(update), update.own) if part is None else part.told(update, row.number)
    progress.confirm("keep")
    _keep_update(zone, claim, work, built, update, leaving, own)
    if own:
        with reading(zone.engine) as session:
            sitestate.forget(session, zone.root, row)
    _LOG.info(ROUND_TRAINED, round_id=row.id, samples=update.samples, seconds=update.train_seconds)


def _keep_update(
    zone: ResearchZone,
    claim: Claim,
    work: Work,
    built: datasets.Built,
    update: LocalUpdate,
    leaving: Weights,
    own: Weights,
) -> None:
    """Write what is to leave, and what stays, to disk; the row is done when it names them."""
    from trainer import weights_io  # noqa: PLC0415

    row = work.row
    # An attempt's own file: one that lost its lease cannot replace what the row names. The attempt's number
    # would not do, since a row that is retried or asked for again starts counting anew.
    relative = f"federation/updates/{row.id}-{new_id()}.safetensors"
    digest = weights_io.save(zone.root / relative, leaving)
    if own:
        sitestate.save(zone.root, row, digest, own)
    with writing(zone.engine) as session:
        stored = _again(session, row.id)
        stored.output_path, stored.output_sha256 = relative, digest
        stored.dataset_version_id, stored.cases = built.version_id, built.cases
        stored.samples, stored.metrics = update.samples, update.metrics.to_json()
        stored.train_seconds, stored.noise_source = update.train_seconds, update.noise_source
        stored.update_norm = update.delta_norm
        session.flush()
        body = {
            "dataset_version_id": built.version_id,
            "global_model_sha256": row.global_model_sha256,
            "update_sha256": digest,
            "samples": update.samples,
            "clipped": update.norm > work.plan.max_update_norm,
        }
        zone.ledger.append(session, kind=ROUND_TRAINED, subject_id=row.id, body=body)
        claim.finish(session)
    _remove_other_attempts(zone.root / relative, row.id)


def _finalize(zone: ResearchZone, claim: Claim, work: Work, progress: Heartbeat) -> None:
    from appliance import packaging  # noqa: PLC0415
    from trainer.compression.spec import taken_over  # noqa: PLC0415
    from trainer.local_round import evaluate  # noqa: PLC0415 - torch loads here
    from trainer.site_rules import site_rule  # noqa: PLC0415

    plan, row = work.plan, work.row
    built = datasets.build(zone, plan.task, progress)
    if plan.own_models:
        work = replace(work, weights=peering.final(zone, work))
    else:
        rule = site_rule(plan.strategy.name)
        own, _ = taken_over(work.own, counted=True)
        work = replace(work, weights=rule.deployed(plan.task, work.weights, own, trained=True))
    metrics = evaluate(plan.task, work.weights, built.dataset, progress).to_json()
    exported = packaging.export(zone, work, built, metrics, progress.during("export"))
    with writing(zone.engine) as session:
        _evaluated(session, row.id, built, metrics)
        candidate = packaging.record(session, work, exported, metrics)
        session.flush()
        body = {"round_id": row.id, "package_sha256": exported.package_sha256}
        zone.ledger.append(session, kind=MODEL_EXPORTED, subject_id=candidate.id, body=body)
        claim.finish(session)
    _LOG.info(MODEL_EXPORTED, round_id=row.id, parity_max_abs=exported.parity_max_abs)


def _evaluated(session: Session, round_id: str, built: datasets.Built, metrics: dict[str, Any]) -> None:
    """Write down what the final model was measured on, and how it did."""
    stored = _again(session, round_id)
    stored.dataset_version_id = built.version_id
    stored.samples = len(built.dataset.validation)
    stored.cases = built.cases
    stored.metrics = metrics


_KINDS: Final[dict[str, Callable[[ResearchZone, Claim, Work, Heartbeat], None]]] = {
    TRAIN: _train,
    aggregating.KIND: aggregating.aggregate,
    peering.KIND: peering.send,
    FINALIZE: _finalize,
}


def _load(zone: ResearchZone, round_id: str) -> Work:
    """Read the row, its plan and model; every hash must be the one that was approved and announced."""
    from trainer import weights_io  # noqa: PLC0415
    from trainer.federation.plan import Plan  # noqa: PLC0415
    from trainer.site_rules import site_rule  # noqa: PLC0415 - torch loads here

    with reading(zone.engine) as session:
        row = _again(session, round_id)
        protocol = session.get(Protocol, row.protocol_id)
    if row.kind not in _KINDS:
        raise RoundError(f"a round of unknown kind; expected {', '.join(_KINDS)}")
    if protocol is None:
        raise RoundError("the protocol is not known here")
    plan = Plan.from_json(protocol.plan)
    if not plan.sha256 == protocol.plan_sha256 == row.plan_sha256:
        raise RoundError("the plan differs from the one that was approved")
    path = (zone.root / row.input_path).resolve()
    if not path.is_relative_to(zone.root.resolve()):
        raise RoundError("the global model lies outside the research zone")
    stored = weights_io.Stored(path)  # there while the round is open
    if stored.sha256 != row.global_model_sha256:
        raise RoundError("the global model differs from its announced hash")
    weights: Mapping[str, Array] = stored
    key = None
    if plan.encryption is not None:
        key = sitekeys.key_of(zone, plan)
        weights = sitekeys.readable(key, plan, weights, row.number - (row.kind == TRAIN))
    if row.kind == TRAIN:
        firsts.check(zone, plan, row, weights, key)
    own: Weights = {}
    remembers = plan.compression is not None and plan.compression.remembers
    if site_rule(plan.strategy.name).stateful or remembers or plan.own_models:
        with reading(zone.engine) as session:
            own = sitestate.load(session, zone.root, row)
    return Work(row, plan, weights, own, _packing(zone, plan, row), key)


def _packing(zone: ResearchZone, plan: Plan, row: Round) -> Packing | None:
    """Say how the update is made small, and whether the last one that left here went into the model.

    Where the ledger does not say so yet, it counts as if it had: what may have arrived is not sent again.
    """
    from trainer.compression import draw_of  # noqa: PLC0415
    from trainer.local_round import Packing  # noqa: PLC0415 - torch loads here

    if plan.compression is None or row.kind != TRAIN:
        return None
    with reading(zone.engine) as session:
        last = sitestate.last_trained(session, row)
        counted = last is None or was_counted(session, plan.sha256, last.number, row.site) is not False
    return Packing(plan.compression, draw_of(plan.seed, row.site, row.number), counted)


def _remove_other_attempts(kept: Path, round_id: str) -> None:
    for path in kept.parent.glob(f"{round_id}-*.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)


def _load_libraries() -> None:
    """Import what computes, in a process's first round, and keep the garbage collector from walking it."""
    if _LIBRARIES in sys.modules:
        return
    gc.disable()
    try:
        import_module(_LIBRARIES)
        gc.freeze()
    finally:
        gc.enable()


def _prepare_process(zone: ResearchZone) -> None:
    from trainer.local_round import use_threads  # noqa: PLC0415

    use_threads(zone.settings.training.threads)
    keep_freed_arrays()


def _again(session: Session, round_id: str) -> Round:
    row = session.get(Round, round_id)
    if row is None:
        raise RoundError("the round's row is gone")
    return row
