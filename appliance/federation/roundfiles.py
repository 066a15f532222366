"""Files of rounds in the research zone: models and mail that came, updates that left. All are bounded."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.base import WorkState
from appliance.db.research import Round
from appliance.federation.errors import ReleaseError
from trainer.compression import steps
from trainer.errors import TrainerError, WeightsError
from trainer.federation import aggregation
from trainer.weights_io import from_bytes, load, receive, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from trainer.federation.plan import Plan
    from trainer.weights_io import Weights

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


def mail_path(root: Path, protocol_id: str, kind: str, number: int, sha256: str) -> Path:
    """Return where lies what came beside the record of a round between peers."""
    return _mail(root) / f"{protocol_id}-{kind}-{number}-{model_path(root, sha256).name}"


def store_mail(path: Path, pieces: Iterable[bytes | memoryview], max_bytes: int) -> None:
    """Keep the mail of a round in place of the protocol's last; raises ReleaseError as for a model."""
    digest = path.stem.rpartition("-")[2]
    _store(path, digest, pieces, max_bytes, "mail")
    for other in path.parent.glob(f"{path.name.partition('-')[0]}-*.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)


def read_mail(root: Path, row: Round) -> Weights:
    """Return what came beside a round's record, nothing where nothing did.

    Raises
    ------
    WeightsError
        If it is not what was stored.
    """
    for path in _mail(root).glob(f"{row.protocol_id}-{row.kind}-{row.number}-*.safetensors"):
        content = path.read_bytes()  # at once: a later mail may take its place
        if hashlib.sha256(content).hexdigest() != path.stem.rpartition("-")[2]:
            raise WeightsError("what came beside the round's record differs from its hash")
        return from_bytes(content)
    return {}


def remove_mail(root: Path, protocol_id: str) -> None:
    """Remove the mail of a protocol whose final model was made."""
    for path in _mail(root).glob(f"{protocol_id}-*.safetensors"):
        path.unlink(missing_ok=True)


def _mail(root: Path) -> Path:
    return root / "federation" / "mail"


def store_model(root: Path, sha256: str, pieces: Iterable[bytes | memoryview], max_bytes: int) -> Path:
    """Keep a global model by its hash; raises ReleaseError when the bytes are others or too many."""
    path = model_path(root, sha256)
    _store(path, sha256, pieces, max_bytes, "model")
    return path


def followed(root: Path, plan: Plan, number: int, base: str, content: bytes) -> bytes:
    """Return the file of the global model that a packed step leads to from one that lies here.

    Parameters
    ----------
    number : int
        Of the finished round whose step it is.

    Raises
    ------
    ReleaseError
        If the plan sends no steps, the model before is not here, or the content is no step from it.
    """
    path = model_path(root, base)
    if plan.compression is None or not plan.compression.both_ways:
        raise ReleaseError("the model came as a step; the plan has no such thing")
    if not path.is_file():
        raise ReleaseError("the model that the step is from is not here")
    try:
        before, arrays = load(path), from_bytes(content)
        arrays = aggregation.fitted(steps.template(plan.compression, before), arrays)
        return to_bytes(steps.follow(plan.compression, steps.drawn(plan.seed, number), before, arrays))
    except (TrainerError, WeightsError) as error:
        raise ReleaseError(f"the model's step cannot be followed: {error}") from error


def _store(path: Path, sha256: str, pieces: Iterable[bytes | memoryview], max_bytes: int, what: str) -> None:
    def bounded() -> Iterator[bytes | memoryview]:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > max_bytes:
                raise ReleaseError(f"the {what} is too large; expected at most {max_bytes} bytes")
            yield piece

    try:
        receive(path, bounded(), sha256)
    except WeightsError as error:
        raise ReleaseError(f"the {what} cannot be stored: {error}") from error


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
