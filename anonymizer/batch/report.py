"""The report of a run: what became of each source, without a value of a patient but for paths."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from anonymizer.batch.messages import DUPLICATE, FAILED, OUTCOMES, QUARANTINED, RELEASED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCHEMA: Final = "cloister.deidentify.report/1"


@dataclass(frozen=True)
class Entry:
    """What became of one source.

    Attributes
    ----------
    source : str
        Path below IN.
    outcome : str
        One of :data:`~anonymizer.batch.messages.OUTCOMES`.
    output, sha256 : str
        Path below OUT and digest of what came out; empty when nothing did.
    code, reason : str
        Why nothing new came out; empty for what was released.
    """

    source: str
    outcome: str
    output: str = ""
    sha256: str = ""
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What became of a run; ``stopped`` says why it ended early, and is empty when it did not."""

    parameters: dict[str, Any]
    files: tuple[Entry, ...]
    stopped: str = ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of sources by outcome."""
        found = Counter(entry.outcome for entry in self.files)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def reasons(self) -> dict[str, int]:
        """Number of sources by code."""
        return dict(sorted(Counter(entry.code for entry in self.files if entry.code).items()))

    @property
    def succeeded(self) -> bool:
        """Whether all instances came out, and there was one at least."""
        bad = self.counts[QUARANTINED] + self.counts[FAILED]
        return not self.stopped and not bad and self.counts[RELEASED] + self.counts[DUPLICATE] > 0

    def document(self, name: Callable[[str], str] = str) -> dict[str, Any]:
        """Return the report as JSON knows it; ``name`` gives what stands for a source's path."""
        return {
            "schema": SCHEMA,
            **self.parameters,
            "complete": not self.stopped,
            "stopped": self.stopped or None,
            "counts": self.counts,
            "reasons": self.reasons,
            "files": [
                {
                    "source": name(entry.source),
                    "outcome": entry.outcome,
                    "output": entry.output or None,
                    "sha256": entry.sha256 or None,
                    "reason_code": entry.code or None,
                    "reason": entry.reason or None,
                }
                for entry in self.files
            ],
        }


def write_report(document: dict[str, Any], path: Path) -> None:
    """Write a report whole or not at all, readable by its owner alone.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
