"""What a run wrote down in OUT, so that a second one goes on: ``.cloister-deidentify/``.

``journal.jsonl`` begins with the run's parameters; then each line is a source's outcome. Sources are named by
a keyed hash of their path, so that nothing in OUT tells the original names.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any, Final, Self

from anonymizer.batch import placing
from anonymizer.batch.below import open_folder_below
from anonymizer.batch.messages import Known
from anonymizer.errors import AnonymizerError

FOLDER: Final = ".cloister-deidentify"
SCHEMA: Final = "cloister.deidentify.state/1"
_JOURNAL, _LOCK, _STAGING = "journal.jsonl", "lock", "staging"
_ADVICE: Final = "expected the same ones, or another OUT"


class RefusedRunError(AnonymizerError):
    """A run that cannot begin as it was asked for."""


class Journal:
    """The record of a run in OUT, held by one run at a time."""

    def __init__(self, target: int, parameters: dict[str, Any]) -> None:
        self._open: list[int] = []
        try:
            self._folder = self._keep(self._private_folder(target, (FOLDER,)))
            self.staging = self._keep(self._private_folder(target, (FOLDER, _STAGING)))
            self._lock()
            self._file = self._keep(self._open_file(_JOURNAL, os.O_RDWR | os.O_APPEND))
            self.known = self._read({"schema": SCHEMA, **parameters})
            self._sweep()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was not finished, and let the next run begin."""
        if hasattr(self, "known"):
            self._sweep()
        while self._open:
            os.close(self._open.pop())

    def add(self, source: str, known: Known) -> None:
        """Write down what became of a source."""
        self._append({"source": source, **asdict(known)})

    def _keep(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def _private_folder(self, target: int, parts: tuple[str, ...]) -> int:
        try:
            descriptor = open_folder_below(target, parts, make=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise RefusedRunError(f"{'/'.join(parts)} in OUT: expected a folder of an earlier run") from error
        os.fchmod(descriptor, 0o700)
        return descriptor

    def _open_file(self, name: str, flags: int) -> int:
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(name, flags, 0o600, dir_fd=self._folder)
        if os.fstat(descriptor).st_nlink != 1:  # a second name may lie outside OUT
            os.close(descriptor)
            raise RefusedRunError(f"{FOLDER}/{name} in OUT: expected a file of an earlier run")
        return descriptor

    def _lock(self) -> None:
        import fcntl  # noqa: PLC0415 - not there on every system that can use the engine

        lock = self._keep(self._open_file(_LOCK, os.O_RDWR))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedRunError("OUT: another run writes there; expected it ended") from error

    def _read(self, parameters: dict[str, Any]) -> dict[str, Known]:
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            content = file.read()
        whole, _, torn = content.rpartition(b"\n")
        if torn:  # the run was killed within a line
            os.ftruncate(self._file, len(content) - len(torn))
        lines = whole.splitlines()
        if not lines:
            self._append(parameters)
            return {}
        self._compare(json.loads(lines[0]), parameters)
        known: dict[str, Known] = {}
        for line in lines[1:]:
            values = json.loads(line)
            source = values.pop("source")
            values["output"] = tuple(values["output"])
            known[source] = Known(**values)
        return known

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if before.get("schema") == SCHEMA and not (before.get("resumable") and now["resumable"]):
            raise RefusedRunError(
                "OUT: holds a run that cannot be continued, since without a key file each run has new"
                " pseudonyms; expected --key-file from the first run on, or another OUT"
            )
        other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if other:
            raise RefusedRunError(f"OUT: holds a run with other parameters ({', '.join(other)}); {_ADVICE}")

    def _append(self, values: dict[str, Any]) -> None:
        line = json.dumps(values).encode("ascii") + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(28, "No space left on device")

    def _sweep(self) -> None:
        placing.sweep(self.staging, "")
