"""What a strategy keeps at this site between the rounds of a run: control variates, a model of its own.

It never leaves. A state's file is named by its round's row, the update that was released with it, and its own
hash: the row that is done names the one state that belongs to it, whatever else a dead attempt left.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.db.base import WorkState
from appliance.db.research import Round
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from trainer.weights_io import Weights


class SiteStateError(ApplianceError):
    """A site's state is lost or changed; the run cannot go on here as if it had none."""


def save(root: Path, row: Round, update_sha256: str, own: Weights) -> None:
    """Write the state that goes with an update, before the row names that update."""
    from trainer import weights_io  # noqa: PLC0415 - numpy loads here

    digest = hashlib.sha256(weights_io.to_bytes(own)).hexdigest()
    weights_io.save(_folder(root) / f"{row.id}-{update_sha256}-{digest}.safetensors", own)


def load(session: Session, root: Path, row: Round) -> Weights:
    """Return the state of the run's last finished round here; empty before the first.

    Raises
    ------
    SiteStateError
        If that round left one that is missing or differs from its hash.
    """
    from trainer import weights_io  # noqa: PLC0415 - numpy loads here

    last = last_trained(session, row)
    if last is None:
        return {}
    paths = list(_folder(root).glob(f"{last.id}-{last.output_sha256}-*.safetensors"))
    if len(paths) != 1 or weights_io.sha256(paths[0]) != paths[0].stem.rpartition("-")[2]:
        raise SiteStateError(f"what round {last.number} left here for the next one is lost or changed")
    return weights_io.load(paths[0])


def last_trained(session: Session, row: Round) -> Round | None:
    """Return the run's last round that was trained here before this one."""
    return session.scalar(
        select(Round)
        .where(Round.protocol_id == row.protocol_id, Round.kind == "train", Round.state == WorkState.DONE)
        .where(Round.number < row.number if row.kind == "train" else Round.number <= row.number)
        .order_by(Round.number.desc())
        .limit(1)
    )


def forget(session: Session, root: Path, row: Round) -> None:
    """Remove the states of rounds before the last one."""
    older = select(Round.id).where(
        Round.protocol_id == row.protocol_id, Round.kind == "train", Round.number < row.number - 1
    )
    for round_id in session.scalars(older):
        for path in _folder(root).glob(f"{round_id}-*.safetensors"):
            path.unlink(missing_ok=True)


def _folder(root: Path) -> Path:
    return root / "federation" / "own"
