"""Model weights as safetensors files: plain arrays, no code, written so that a crash leaves no half file."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy

from trainer.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[Any]
Weights = dict[str, Array]
"""Name to array, as in a state dict; 0-d and integer arrays included."""

MAX_BYTES = 4 * 2**30


def to_bytes(weights: Mapping[str, Array]) -> bytes:
    """Serialise; equal weights give equal bytes.

    Raises
    ------
    WeightsError
        If an array is of a type, or has a name, that no such file can hold.
    """
    # np.array keeps 0-d arrays 0-d, which np.ascontiguousarray does not; safetensors reads raw memory.
    plain = {name: np.array(weights[name], order="C") for name in sorted(weights)}
    try:
        return bytes(safetensors_numpy.save(plain))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"no weights file can hold this ({type(error).__name__})") from error


def from_bytes(content: bytes) -> Weights:
    """Read what :func:`to_bytes` wrote.

    Raises
    ------
    WeightsError
        If the bytes are no safetensors file of array types that numpy knows.
    """
    try:
        return dict(safetensors_numpy.load(content))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WeightsError(f"not a weights file ({type(error).__name__}); expected safetensors") from error


def save(path: Path, weights: Mapping[str, Array]) -> str:
    """Write atomically and durably, and return the file's SHA-256."""
    content = to_bytes(weights)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return hashlib.sha256(content).hexdigest()


def load(path: Path) -> Weights:
    """Read a weights file.

    Raises
    ------
    WeightsError
        If the file is missing, larger than ``MAX_BYTES`` or malformed.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path.name}: larger than {MAX_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path.name}: cannot be read ({error.strerror})") from error
    try:
        return from_bytes(content)
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error}") from error


class Stored(Mapping[str, Array]):
    """A weights file as a mapping that reads an array whenever it is asked for and keeps none.

    So what many sites send is held on disk, and memory is that of the arrays in use, however many there are.
    """

    def __init__(self, path: Path, digest: str = "") -> None:
        """Read the names; ``digest`` is the file's SHA-256 where it is known already.

        Raises
        ------
        WeightsError
            If the file is missing or malformed.
        """
        self.path, self._digest = path, digest
        try:
            with safe_open(path, "numpy") as content:
                self._names = tuple(sorted(content.keys()))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path.name}: cannot be read; expected safetensors") from error

    @classmethod
    def write(cls, path: Path, weights: Mapping[str, Array]) -> Stored:
        """Write a file as :func:`save` does, and return it as a mapping."""
        return cls(path, save(path, weights))

    @property
    def sha256(self) -> str:
        """The file's SHA-256, read once."""
        if not self._digest:
            self._digest = sha256(self.path)
        return self._digest

    def __getitem__(self, name: str) -> Array:
        """Read one array; raises KeyError for an unknown name, WeightsError when the file is gone."""
        if name not in self._names:
            raise KeyError(name)
        try:
            # Opened for each array: an open file's pages would count as this process's memory.
            with safe_open(self.path, "numpy") as content:
                return np.asarray(content.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{self.path.name}: {name} cannot be read") from error

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sorted names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._names)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def difference(after: Mapping[str, Array], before: Mapping[str, Array]) -> Weights:
    """Return the local update ``after - before`` in the dtypes of ``before``."""
    return {
        name: np.asarray(np.subtract(after[name], before[name]), dtype=before[name].dtype) for name in before
    }
