"""What leaves a site in a round, as its receipt names it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from appliance.db.research import DatasetVersion, Protocol
from appliance.federation import budget
from appliance.federation.errors import ReleaseError
from trainer import strategies
from trainer.federation import receipt
from trainer.federation.peering.letters import addressees
from trainer.federation.plan import Plan
from trainer.weights_io import from_bytes

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.db.research import Round

TRAIN: Final = "train"
FINALIZE: Final = "finalize"


def of_round(session: Session, row: Round, content: bytes, norm: float) -> receipt.Departure:
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
    tensors = receipt.tensors_of(content)
    return receipt.Departure(
        run_id=row.run_id,
        number=row.number,
        kind=row.kind,
        site=row.site,
        plan_sha256=row.plan_sha256,
        global_model_sha256=row.global_model_sha256,
        update_sha256=row.output_sha256 or "" if row.kind != FINALIZE else "",
        size_bytes=len(content),
        tensors=tensors,
        samples=row.samples,
        dataset_sha256=dataset.content_sha256 if dataset is not None else "",
        metric_names=tuple(row.metrics),
        update_norm=norm,
        eligible=int(row.cases.get("eligible", 0)),
        used=int(row.cases.get("used", 0)),
        skipped=dict(row.cases.get("skipped", {})),
        protocol_id=protocol.id,
        approved_by=protocol.decided_by or "",
        ethics_number=plan.ethics_number,
        privacy=cost,
        recipients=addressees(one.name for one in tensors),
    )


def norm(plan: Plan, row: Round, content: bytes) -> float:
    """Return the norm of an update as it counts; where that is not what leaves, the worker measured it."""
    as_it_is = plan.compression is None and plan.encryption is None and not plan.own_models
    if row.kind != TRAIN or as_it_is:
        return strategies.update_norm(from_bytes(content))
    return math.inf if row.update_norm is None else row.update_norm
