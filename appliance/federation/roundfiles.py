"""Files of rounds in the research zone: global models that came, by their hash, bounded in number."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.base import WorkState
from appliance.db.research import Round
from appliance.federation.errors import ReleaseError
from trainer.weights_io import from_bytes, save

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

KEPT_MODELS: Final = 4
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
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReleaseError("the model differs from its announced hash")
    if not path.is_file():
        save(path, from_bytes(content))
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
