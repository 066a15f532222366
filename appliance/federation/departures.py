"""What leaves a site in a round, as its receipt names it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.db.research import DatasetVersion, Protocol
from appliance.federation import budget
from appliance.federation.errors import ReleaseError
from trainer.federation import receipt
from trainer.federation.peering.letters import addressees
from trainer.federation.plan import Plan
from trainer.weights_io import Stored, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.db.research import Round

TRAIN: Final = "train"
FINALIZE: Final = "finalize"


@dataclass(frozen=True)
class Leaving:
    """The file that a round sends out, none where a final model was measured.

    ``norm`` is that of the update as it counts.
    """

    path: Path | None = None
    size_bytes: int = 0
    tensors: tuple[receipt.Tensor, ...] = ()
    norm: float = 0.0


def leaving(session: Session, root: Path, row: Round) -> Leaving:
    """Check what the worker wrote: an evaluation has no update, an aggregate no bound.

    Raises
    ------
    ReleaseError
        If there is none, its bytes are others, or it is larger than the plan allows.
    """
    if row.kind == FINALIZE:
        return Leaving()
    if row.output_path is None or row.output_sha256 is None:
        raise ReleaseError("the round has no update")
    path = (root / row.output_path).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ReleaseError("the update lies outside the research zone")
    try:
        if sha256(path) != row.output_sha256:
            raise ReleaseError("the update differs from what the worker wrote")
        tensors, norm = receipt.tensors_of(Stored(path))
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ReleaseError(f"the update cannot be read ({error.strerror})") from error
    protocol = session.get(Protocol, row.protocol_id)
    plan = None if protocol is None else Plan.from_json(protocol.plan)
    if plan is not None and not _counts_as_it_is(plan, row):
        norm = math.inf if row.update_norm is None else row.update_norm  # as the worker measured it
    if plan is None or (row.kind == TRAIN and not norm <= plan.max_update_norm):
        raise ReleaseError("the update is larger than the plan allows")
    return Leaving(path, size_bytes, tensors, norm)


def _counts_as_it_is(plan: Plan, row: Round) -> bool:
    as_it_is = plan.compression is None and plan.encryption is None and not plan.own_models
    return row.kind != TRAIN or as_it_is


def of_round(session: Session, row: Round, sent: Leaving) -> receipt.Departure:
    """Return what a round sends out, for its receipt; raises ReleaseError if its cost is not booked."""
    dataset = session.get(DatasetVersion, row.dataset_version_id or "")
    protocol = session.get(Protocol, row.protocol_id)
    if protocol is None:
        raise ReleaseError("the round's protocol is not known here")
    plan = Plan.from_json(protocol.plan)
    try:
        cost = budget.spent(session, plan, row) if row.kind == TRAIN else None
    except budget.BudgetError as error:
        raise ReleaseError(str(error)) from error
    return receipt.Departure(
        run_id=row.run_id,
        number=row.number,
        kind=row.kind,
        site=row.site,
        plan_sha256=row.plan_sha256,
        global_model_sha256=row.global_model_sha256,
        update_sha256=row.output_sha256 or "" if row.kind != FINALIZE else "",
        size_bytes=sent.size_bytes,
        tensors=sent.tensors,
        samples=row.samples,
        dataset_sha256=dataset.content_sha256 if dataset is not None else "",
        metric_names=tuple(row.metrics),
        update_norm=sent.norm,
        eligible=int(row.cases.get("eligible", 0)),
        used=int(row.cases.get("used", 0)),
        skipped=dict(row.cases.get("skipped", {})),
        protocol_id=protocol.id,
        approved_by=protocol.decided_by or "",
        ethics_number=plan.ethics_number,
        privacy=cost,
        recipients=addressees(one.name for one in sent.tensors),
    )
