"""A finished round's files: the global model and, beside it, what the strategy remembers.

The state's hash stands in the model's file name, and so in the round's row: a strategy whose state is lost or
changed must not start anew in silence.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from appliance import logs
from appliance.federation.errors import CoordinatorError
from trainer.weights_io import load, save, sha256, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Array = NDArray[Any]
ROUND_REMOVED: Final = "checkpoint.removed"
KEPT: Final = 4  # of a run's newest rounds
_ROOM_FOR: Final = 10  # models
_SHA256_LENGTH: Final = 64
_NAMED: Final = re.compile(r"round-([0-9]+)")
_STATE: Final = ".state.safetensors"

_LOG = logs.logger(__name__)


def write(path: Path, weights: Mapping[str, Array], state: Mapping[str, Array]) -> tuple[Path, str]:
    """Write state, then model; return where the model lies and its SHA-256."""
    if state:
        path = path.with_name(f"{path.stem}-{hashlib.sha256(to_bytes(state)).hexdigest()}{path.suffix}")
        save(_state_path(path), state)
    return path, save(path, weights)


def free_bytes(folder: Path) -> int:
    """Return what is free on a folder's file system."""
    return shutil.disk_usage(folder).free


def make_room(runs: Path, size_bytes: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Remove models of rounds of any run, the oldest first, while fewer than ten of this size would fit.

    Each run keeps its first model and those of its newest rounds; what a strategy remembered goes with its
    model. The book keeps their hashes.
    """
    if free(runs) >= _ROOM_FOR * size_bytes:
        return
    for path in _spare(runs):
        _state_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        _LOG.info(ROUND_REMOVED, round=path.name.partition(".")[0])
        if free(runs) >= _ROOM_FOR * size_bytes:
            return


def _spare(runs: Path) -> list[Path]:
    """Return the models that could go, the oldest first."""
    found: list[Path] = []
    for folder in runs.iterdir():
        numbered = {
            path: int(named[1])
            for path in folder.glob("*.safetensors")
            if (named := _NAMED.match(path.name)) and not path.name.endswith(_STATE)
        }
        newest = sorted(set(numbered.values()))[-KEPT:]
        found.extend(path for path, number in numbered.items() if number and number not in newest)
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def read(path: Path, model_sha256: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return model and state.

    Raises
    ------
    CoordinatorError
        If either is not what was written.
    """
    if sha256(path) != model_sha256:
        raise CoordinatorError(f"{path.name}: the checkpoint differs from its hash")
    digest = path.stem.rpartition("-")[2]
    if len(digest) != _SHA256_LENGTH:
        return load(path), {}
    state_path = _state_path(path)
    if not state_path.is_file() or sha256(state_path) != digest:
        raise CoordinatorError(f"{path.name}: the strategy's state is missing or differs from its hash")
    return load(path), load(state_path)


def _state_path(path: Path) -> Path:
    return path.with_suffix(_STATE)
