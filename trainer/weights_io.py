"""Model weights as safetensors files: plain arrays, no code, written so that a crash leaves no half file."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from trainer import tensor_layout
from trainer.errors import WeightsError

if TYPE_CHECKING:
    import io
    from pathlib import Path

Array = NDArray[Any]
Weights = dict[str, Array]
"""Name to array, as in a state dict; 0-d and integer arrays included."""

MAX_BYTES = 4 * 2**30
_LARGE_BYTES: Final = 2**19  # worth a thread, and a word to the disk
_SYNC_FILE_RANGE_WRITE: Final = 2


def to_bytes(weights: Mapping[str, Array]) -> bytes:
    """Serialise; equal weights give equal bytes.

    Raises
    ------
    WeightsError
        If an array is of a type, or has a name, that no such file can hold.
    """
    return b"".join(tensor_layout.pieces(weights))


def from_bytes(content: bytes) -> Weights:
    """Read what :func:`to_bytes` wrote; the arrays read these very bytes and cannot be written to.

    Raises
    ------
    WeightsError
        If the bytes are no safetensors file of array types that numpy knows.
    """
    head = content[: tensor_layout.header_bytes(content)]
    found = tensor_layout.places(head, len(content))
    return {name: tensor_layout.view(content, place) for name, place in found.items()}


def save(path: Path, weights: Mapping[str, Array], *, durable: bool = True) -> str:
    """Write atomically and, unless it is not to outlive a crash, durably; return the file's SHA-256."""
    return _write(path, tensor_layout.pieces(weights), durable=durable)


def digest_of(weights: Mapping[str, Array]) -> str:
    """Return the SHA-256 of the file that :func:`save` would write; raises WeightsError as it does."""
    digest = hashlib.sha256()
    for piece in tensor_layout.pieces(weights):
        digest.update(piece)
    return digest.hexdigest()


def receive(path: Path, pieces: Iterable[bytes | memoryview], expected: str) -> None:
    """Write a file of someone else's durably, piece by piece.

    Raises
    ------
    WeightsError
        If its SHA-256 is another than ``expected``, or it is no weights file: nothing is kept then.
    """

    def check(written: Path, digest: str) -> None:
        if digest != expected:
            raise WeightsError("the content differs from its announced hash")
        _places(written)

    _write(path, pieces, check)


def _write(
    path: Path,
    pieces: Iterable[bytes | memoryview],
    check: Callable[[Path, str], None] = lambda *_: None,
    *,
    durable: bool = True,
) -> str:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream, _Hashing() as hashing:
            for piece in pieces:
                hashing.begin(piece)
                stream.write(piece)
                hashing.end()
                if durable and _is_large(piece):
                    _begin_to_sync(stream.fileno())
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        check(temporary, hashing.digest)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)
    return hashing.digest


def _is_large(piece: bytes | memoryview) -> bool:
    return memoryview(piece).nbytes >= _LARGE_BYTES


def _begin_to_sync(descriptor: int) -> None:
    """Have the disk take what is written so far meanwhile (sync_file_range(2)), where that is known.

    It promises nothing: the sync at the end does, and is short then.
    """
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin is not None:
        whole = ctypes.c_int64(0)
        begin(descriptor, whole, whole, _SYNC_FILE_RANGE_WRITE)


class _Hashing:
    """The SHA-256 of a file that is being written: a large piece is summed beside its writing."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._beside: ThreadPoolExecutor | None = None
        self._begun: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._beside is not None:
            self._beside.shutdown()

    def begin(self, piece: bytes | memoryview) -> None:
        """Begin to sum a piece, which stays as it is until :meth:`end`."""
        if not _is_large(piece):
            self._sum.update(piece)
            return
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "hashing")
        self._begun = self._beside.submit(self._sum.update, piece)

    def end(self) -> None:
        """Wait until the piece is summed."""
        if self._begun is not None:
            self._begun.result()
            self._begun = None

    @property
    def digest(self) -> str:
        """Of all pieces, in hexadecimal."""
        return self._sum.hexdigest()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> Weights:
    """Read a weights file.

    Raises
    ------
    WeightsError
        If the file is missing, larger than ``MAX_BYTES`` or malformed.
    """
    stored = Stored(path)
    return {name: stored[name] for name in stored}


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
            self._places = dict(sorted(_places(path).items()))
        except OSError as error:
            raise WeightsError(
                f"{path.name}: cannot be read ({error.strerror}); expected safetensors"
            ) from error
        except WeightsError as error:
            raise WeightsError(f"{path.name}: {error}") from error

    @classmethod
    def write(cls, path: Path, weights: Mapping[str, Array], *, durable: bool = True) -> Stored:
        """Write a file as :func:`save` does, and return it as a mapping."""
        return cls(path, save(path, weights, durable=durable))

    @property
    def sha256(self) -> str:
        """The file's SHA-256, read once."""
        if not self._digest:
            self._digest = sha256(self.path)
        return self._digest

    def __getitem__(self, name: str) -> Array:
        """Read one array; raises KeyError for an unknown name, WeightsError when the file is gone."""
        place = self._places[name]
        return self.part(name, 0, place.count).reshape(place.shape)

    def form(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and dtype of an array; raises KeyError for an unknown name."""
        place = self._places[name]
        return place.shape, place.dtype

    def part(self, name: str, first: int, last: int) -> Array:
        """Read the elements ``first`` to ``last`` of a flattened array; raises as reading all of it does."""
        place = self._places[name]
        part = np.empty(min(last, place.count) - first, place.dtype)
        try:
            # Read, not mapped: a mapped file's pages would count as this process's memory.
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(place.first + first * place.dtype.itemsize)
                if _fill(stream, part.view(np.uint8).data) < part.nbytes:
                    raise WeightsError(f"{self.path.name}: {name} cannot be read (it ended early)")
        except OSError as error:
            raise WeightsError(f"{self.path.name}: {name} cannot be read ({error.strerror})") from error
        return part

    def mapped(self) -> Weights:
        """Return arrays that read the file where it lies; they stay whole when it is removed.

        For what is handed on: the system takes their pages back whenever it needs the memory.
        """
        with self.path.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return {name: tensor_layout.view(content, place) for name, place in self._places.items()}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sorted names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._places)


def mapped(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return a model of a file with its arrays mapped, any other as it is."""
    return weights.mapped() if isinstance(weights, Stored) else weights


def _places(path: Path) -> dict[str, tensor_layout.Place]:
    with path.open("rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes > MAX_BYTES:
            raise WeightsError(f"larger than {MAX_BYTES} bytes")
        start = stream.read(tensor_layout.LENGTH_BYTES)
        head = start + stream.read(tensor_layout.header_bytes(start) - len(start))
    return tensor_layout.places(head, size_bytes)


def _fill(stream: io.FileIO, room: memoryview) -> int:
    """Read until there is no room or nothing left: one call reads 2 GiB at most."""
    filled = 0
    while filled < len(room) and (count := stream.readinto(room[filled:])):
        filled += count
    return filled


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def difference(after: Mapping[str, Array], before: Mapping[str, Array]) -> Weights:
    """Return the local update ``after - before`` in the dtypes of ``before``."""
    return {name: _change(after[name], array) for name, array in before.items()}


def become_difference(after: Weights, before: Mapping[str, Array]) -> Weights:
    """Return what :func:`difference` does, in the memory of ``after``, which is no model any more."""
    for name, array in before.items():
        if after[name].dtype == array.dtype and after[name].flags.writeable:
            np.subtract(after[name], array, out=after[name])
        else:
            after[name] = _change(after[name], array)
    return {name: after[name] for name in before}


def _change(after: Array, before: Array) -> Array:
    return np.asarray(np.subtract(after, before), dtype=before.dtype)
