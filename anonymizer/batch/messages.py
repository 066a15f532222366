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
LOOKED: Final = "looked"  # of a process alone: which series the file belongs to
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
    series : str
        Name of the series whose other files decided about the output; empty when none did.
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
    series: str = ""


@dataclass(frozen=True)
class Series:
    """The files of a series below IN; ``name`` is a keyed hash of their paths, sizes and times."""

    files: tuple[tuple[str, ...], ...]
    name: str


@dataclass(frozen=True)
class Task:
    """One source to de-identify, or with ``look`` to be told which series it belongs to."""

    number: int
    parts: tuple[str, ...]
    known: Known | None = None
    series: Series | None = None
    look: bool = False


@dataclass(frozen=True)
class Answer:
    """What a process made of a task; ``staged`` names the new file, ``missing`` what a DICOMDIR lacks.

    ``series`` is the keyed hash of a series when the task was to look, else the series' name.
    """

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
    series: str = ""

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
