"""Files of rounds in the research zone: global models that came, updates that left. Both are bounded."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.base import WorkState
from appliance.db.research import Round
from appliance.federation.errors import ReleaseError
from trainer.errors import WeightsError
from trainer.weights_io import from_bytes, save_pieces

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

KEPT_MODELS: Final = 4
KEPT_UPDATES: Final = 4  # of one run
KEPT_UPDATES_IN_ALL: Final = 32
STRAY_AFTER_S: Final = 24 * 3600.0
_OPEN: Final = (WorkState.QUEUED, WorkState.RUNNING, WorkState.FAILED)


def model_path(root: Path, sha256: str) -> Path:
    """Return where a global model lies; raises ReleaseError for what is no hash."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ReleaseError("expected a SHA-256 in hexadecimal")
    return root / "federation" / "models" / f"{sha256}.safetensors"


def store_model(root: Path, sha256: str, content: bytes, max_bytes: int) -> Path:
    """Keep a global model by its hash; raises ReleaseError when the bytes are others or too many."""
    path = model_path(root, sha256)
    if len(content) > max_bytes:
        raise ReleaseError(f"the model is too large; expected at most {max_bytes} bytes")
    try:
        from_bytes(content)
        save_pieces(path, [content], sha256)
    except WeightsError as error:
        raise ReleaseError(f"the model cannot be stored: {error}") from error
    return path


def remove_old_models(session: Session, root: Path) -> None:
    """Keep the newest global models and those of rounds that are not over."""
    needed = set(session.scalars(select(Round.input_path).where(Round.state.in_(_OPEN))))
    files = sorted(
        (root / "federation" / "models").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns
    )
    for path in files[:-KEPT_MODELS]:
        if str(path.relative_to(root)) not in needed:
            path.unlink(missing_ok=True)


def forget_old_updates(session: Session) -> list[str]:
    """Take the file from rounds whose receipt is long written; return the paths, to remove after the commit.

    The newest of each run stay, so that a coordinator that asks twice gets the same update twice.
    """
    released = select(Round).where(Round.output_path.is_not(None), Round.receipt_id.is_not(None))
    of_run: Counter[tuple[str, str]] = Counter()  # and of one kind: aggregates crowd out no update
    paths: list[str] = []
    for count, row in enumerate(session.scalars(released.order_by(Round.updated_at.desc(), Round.id)), 1):
        of_run[row.protocol_id, row.kind] += 1
        if of_run[row.protocol_id, row.kind] > KEPT_UPDATES or count > KEPT_UPDATES_IN_ALL:
            paths.append(str(row.output_path))
            row.output_path = None
    return paths


def remove_updates(session: Session, root: Path, paths: list[str]) -> None:
    """Remove these updates, and day-old ones that no round names: of attempts that lost their lease."""
    named = set(session.scalars(select(Round.output_path).where(Round.output_path.is_not(None))))
    past = time.time() - STRAY_AFTER_S
    for path in (root / "federation" / "updates").glob("*.safetensors"):
        relative = str(path.relative_to(root))
        if relative in paths or (relative not in named and path.stat().st_mtime < past):
            path.unlink(missing_ok=True)
