"""A finished round's files: the global model and, beside it, what the strategy remembers.

The state's hash stands in the model's file name, and so in the round's row: a strategy whose state is lost or
changed must not start anew in silence.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from appliance.federation.errors import CoordinatorError
from trainer.weights_io import load, save, sha256, to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = NDArray[Any]
_SHA256_LENGTH: Final = 64


def write(path: Path, weights: Mapping[str, Array], state: Mapping[str, Array]) -> tuple[Path, str]:
    """Write state, then model; return where the model lies and its SHA-256."""
    if state:
        path = path.with_name(f"{path.stem}-{hashlib.sha256(to_bytes(state)).hexdigest()}{path.suffix}")
        save(_state_path(path), state)
    return path, save(path, weights)


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
    return path.with_suffix(".state.safetensors")
