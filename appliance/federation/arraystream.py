"""How arrays travel between the engine's job processes: laid out as one weights file, piece by piece.

The engine's own way makes an archive of each array, which is summed, packed and copied several times at
both ends. Here a piece is copied once from where its arrays lie, and once to where it belongs. Downloads,
their order and their retries are the engine's own.

What cannot be read becomes an array that is none. The engine would end the coordinator's job instead, so
that one site could end it again and again.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.f3.streaming.download_service import Consumer, Downloadable, ProduceRC, download_object
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import Datum

from trainer import tensor_layout
from trainer.errors import WeightsError
from trainer.weights_io import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

PIECE_BYTES: Final = 8 * 2**20
_FIRST: Final = "first"
_TOTAL: Final = "total"
_NONE: Final = np.array("unreadable")  # of a type that no model has: whoever takes it refuses it


def register() -> None:
    """Let this process send and receive arrays so; call it before the engine starts.

    The engine keeps the first decomposer that it is given for a type.
    """
    fobs.register(_PieceDecomposer)
    fobs.register(ArrayDecomposer)


class Piece:
    """Some bytes of a stream."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        """Return the number of bytes."""
        return len(self.content)


class _PieceDecomposer(fobs.Decomposer):  # type: ignore[misc]
    """Puts a piece beside a message's body, where the engine copies it least."""

    def supported_type(self) -> type[Piece]:
        """Return the type."""
        return Piece

    def decompose(self, target: Piece, manager: Any = None) -> Datum:
        """Return the piece as the engine's messages hold it."""
        del manager
        return Datum.blob_datum(target.content)

    def recompose(self, data: Datum, manager: Any = None) -> Piece:
        """Return what arrived."""
        del manager
        return Piece(data.value)


class ArrayStream(Downloadable):  # type: ignore[misc]
    """Arrays as one weights file, of which any piece is sent to whoever asks."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(None)
        self._parts: list[memoryview] | None = tensor_layout.pieces(arrays)
        self._ends = list(accumulate(part.nbytes for part in self._parts))

    def produce(self, state: dict[str, Any], requester: str) -> tuple[str, Any, dict[str, Any]]:
        """Return the piece after the one that a receiver tells it has."""
        del requester
        first = 0 if not state else state.get(_FIRST)
        parts, total = self._parts, self._ends[-1]
        if type(first) is not int or not 0 <= first <= total or parts is None:
            return ProduceRC.ERROR, None, {}
        if first == total:
            return ProduceRC.EOF, None, {}
        last = min(first + PIECE_BYTES, total)
        return ProduceRC.OK, [Piece(self._between(parts, first, last))], {_FIRST: last, _TOTAL: total}

    def _between(self, parts: list[memoryview], first: int, last: int) -> bytes:
        """Return a copy of these bytes: a view of some, left somewhere, would keep all of them."""
        found = []
        at = bisect_right(self._ends, first)
        while first < last:
            start = self._ends[at] - parts[at].nbytes
            found.append(parts[at][first - start : last - start])
            first, at = self._ends[at], at + 1
        return b"".join(found)

    def release(self) -> None:
        """Let go of the arrays."""
        self._parts = None


class Gathering(Consumer):  # type: ignore[misc]
    """Puts the pieces of a stream together.

    Attributes
    ----------
    arrays : dict of ndarray
        What arrived, when all of it did.
    error : str
        Why nothing did.
    is_broken : bool
        Whether that is since what arrived cannot be read.
    """

    supports_pipelining = True

    def __init__(self) -> None:
        super().__init__()
        self.arrays: dict[str, NDArray[Any]] = {}
        self.error, self.is_broken = "", False
        self._content: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._filled = 0

    def consume(self, ref_id: str, state: dict[str, Any], data: Any) -> dict[str, Any]:
        """Take the next piece; raises WeightsError for what is none."""
        del ref_id
        with self._reading():
            total = state.get(_TOTAL) if isinstance(state, dict) else None
            for piece in data if isinstance(data, list) else [data]:
                self._take(piece, total)
        return state

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except WeightsError:
            self.is_broken = True
            raise

    def _take(self, sent: object, total: object) -> None:
        piece = sent.content if isinstance(sent, Piece) else None
        if not isinstance(piece, bytes) or not piece:
            raise WeightsError("arrays: expected bytes")
        if self._filled == 0:
            if type(total) is not int or not 0 < total <= MAX_BYTES:
                raise WeightsError(f"arrays: expected 1 to {MAX_BYTES} bytes")
            self._content = np.empty(total, np.uint8)
        end = self._filled + len(piece)
        if end > self._content.size:
            raise WeightsError("arrays: more bytes than announced")
        self._content[self._filled : end] = np.frombuffer(piece, np.uint8)
        self._filled = end

    def download_completed(self, ref_id: str) -> None:
        """Look at what arrived; raises WeightsError if it is no weights file."""
        del ref_id
        with self._reading():
            if not 0 < self._filled == self._content.size:
                raise WeightsError("arrays: fewer bytes than announced")
            content = self._content.data
            length = tensor_layout.header_bytes(bytes(content[: tensor_layout.LENGTH_BYTES]))
            found = tensor_layout.places(bytes(content[:length]), self._content.size)
            self.arrays = {name: tensor_layout.view(content, place) for name, place in found.items()}

    def download_failed(self, ref_id: str, reason: str) -> None:
        """Take note of why nothing arrives any more."""
        del ref_id
        self.error = reason


class _Received(dict[str, Any]):
    """A message's arrays; what is missing, or all where none could be read, is what no model has."""

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: object = None) -> Any:
        """Return an array."""
        del default
        return super().get(name, _NONE)


class ArrayDecomposer(NumpyArrayDecomposer):  # type: ignore[misc]
    """The engine's decomposer of arrays, with our streams in place of its archives."""

    def to_downloadable(
        self, items: dict[str, Any], max_chunk_size: int, fobs_ctx: dict[str, Any]
    ) -> ArrayStream:
        """Return a message's arrays as one stream."""
        del max_chunk_size, fobs_ctx
        return ArrayStream(items)

    def download(
        self, from_fqcn: str, ref_id: str, per_request_timeout: float, cell: Any, **options: Any
    ) -> tuple[str, dict[str, Any]]:
        """Fetch a message's arrays; return an error or them, by their numbers in the message."""
        gathering = Gathering()
        options.pop("fobs_ctx", None)
        try:
            download_object(
                from_fqcn=from_fqcn,
                ref_id=ref_id,
                consumer=gathering,
                per_request_timeout=per_request_timeout,
                cell=cell,
                **options,
            )
        except WeightsError:
            self.logger.exception("%s: what it sent cannot be read", from_fqcn)
        return "" if gathering.is_broken else gathering.error, _Received(gathering.arrays)
