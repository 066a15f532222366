"""A model asked in a process of its own: what a runtime takes to load it is not its asker's memory.

Run as ``python -m inference.session_process``. All that goes in and out is a line of JSON, and after one with
``shape`` as many float32. First comes what to load, then batches; each is answered, an error by ``code`` and
``message``. The end of standard input is the end of the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from inference.card import ModelCard
from inference.children import start, stop
from inference.errors import InferenceError, SessionError
from inference.package import Package

if TYPE_CHECKING:
    import numpy.typing as npt

_Message = tuple[dict[str, Any], "npt.NDArray[np.float32]"]
_NOTHING = np.zeros(0, np.float32)


class SessionProcess:
    """A :class:`inference.session.ModelSession` in a child process, which ends with the ``with`` block.

    Raises
    ------
    SessionError
        As the session itself; ``session.process`` if its process has ended.
    """

    def __init__(self, package: Package, threads: int = 1) -> None:
        self._child = start("inference.session_process", subprocess.PIPE)
        card = package.card.to_json()
        self._hello = {"folder": str(package.folder.absolute()), "card": card, "threads": threads}

    def __enter__(self) -> Self:
        try:
            self._ask(self._hello, _NOTHING)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the session answers."""
        return self._ask({"shape": batch.shape}, batch)

    def _ask(self, head: dict[str, Any], batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        answer = None
        if self._child.stdin is not None and self._child.stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                _send(self._child.stdin, head, batch)
                answer = _receive(self._child.stdout)
        if answer is None:
            raise SessionError("session.process", "the process that runs the model has ended")
        told, found = answer
        if "code" in told:
            raise SessionError(told["code"], told["message"])
        return found

    def _stop(self) -> None:
        stop(self._child)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _send(stream: IO[bytes], head: dict[str, Any], array: npt.NDArray[np.float32]) -> None:
    stream.write(json.dumps(head).encode() + b"\n")
    stream.write(np.ascontiguousarray(array, np.float32).data)
    stream.flush()


def _receive(stream: IO[bytes]) -> _Message | None:
    """Return a message; None at the end of the stream, also within one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    shape = head.get("shape", [0])
    content = stream.read(4 * math.prod(shape))
    if len(content) < 4 * math.prod(shape):
        return None
    return head, np.frombuffer(content, np.float32).reshape(shape)


def main() -> int:
    """Load what is asked for, then answer batches."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    first = _receive(source)
    if first is None:
        return 2
    hello, _ = first
    try:
        from inference.session import ModelSession  # noqa: PLC0415 - the runtime loads here

        package = Package(ModelCard.from_json(hello["card"]), Path(hello["folder"]), sha256="", signer="")
        session = ModelSession(package, threads=hello["threads"])
        _send(target, {}, _NOTHING)
        while (message := _receive(source)) is not None:
            found = session.run(message[1])
            _send(target, {"shape": found.shape}, found)
    except InferenceError as error:
        _send(target, {"code": error.code, "message": error.message}, _NOTHING)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
