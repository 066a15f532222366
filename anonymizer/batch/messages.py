"""What the run and its processes tell each other.

Tasks go to a process as Python objects; answers come back as JSON, since a process reads what strangers
wrote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Final

RELEASED: Final = "released"
DUPLICATE: Final = "duplicate"
QUARANTINED: Final = "quarantined"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
OUTCOMES: Final = (RELEASED, DUPLICATE, QUARANTINED, FAILED, SKIPPED)
SAME: Final = "same"  # of a process alone: as the record of an earlier run says
FATAL: Final = "fatal"  # of a process alone: OUT takes no more


@dataclass(frozen=True)
class Known:
    """What an earlier run wrote down of a source.

    Attributes
    ----------
    size_bytes, mtime_ns, content : int, int, str
        What the source was; ``content`` is a keyed hash of its bytes.
    outcome, code, reason : str
        What became of it.
    output : tuple of str
        Where it came out below OUT; empty when it did not.
    sop_instance_uid, sha256 : str
        Of the output.
    """

    size_bytes: int
    mtime_ns: int
    content: str
    outcome: str
    code: str = ""
    reason: str = ""
    output: tuple[str, ...] = ()
    sop_instance_uid: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Task:
    """One source to de-identify."""

    number: int
    parts: tuple[str, ...]
    known: Known | None = None


@dataclass(frozen=True)
class Answer:
    """What a process made of a task; ``staged`` names the new file, ``missing`` what a DICOMDIR lacks."""

    number: int
    outcome: str
    code: str = ""
    reason: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    content: str = ""
    staged: str = ""
    output: tuple[str, ...] = ()
    sop_instance_uid: str = ""
    sha256: str = ""
    missing: tuple[tuple[str, str, str], ...] = field(default=())

    def encode(self) -> bytes:
        """Return the answer as JSON."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def decode(cls, content: bytes) -> Answer:
        """Read an answer."""
        values = json.loads(content)
        values["output"] = tuple(values["output"])
        values["missing"] = tuple(tuple(each) for each in values["missing"])
        return cls(**values)
