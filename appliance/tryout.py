"""Trying rules: what they would do with a stored study, or with one file; nothing is done or stored."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import and_, select

from appliance import actions, conditions, facts
from appliance.conditions import RuleError
from appliance.db.base import now
from appliance.db.clinical import Rule, Study, StudyRevision
from appliance.db.engine import reading
from appliance.routing import decide, enabled_rules
from dicom_node.errors import HeaderError
from dicom_node.index import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

    from sqlalchemy.orm import Session

    from appliance.actions import Outcome
    from appliance.node import ClinicalZone

MAX_FILE_BYTES: Final = 64 << 20
UNSAVED: Final = "this rule"
_CHUNK_BYTES: Final = 1 << 20


def unsaved(condition: Mapping[str, Any], action: Mapping[str, Any]) -> Rule:
    """Return a rule that is not stored; raises RuleError naming the field that is wrong."""
    conditions.check(condition)
    actions.check(action)
    return Rule(name=UNSAVED, enabled=True, position=0, condition=dict(condition), action=dict(action))


def on_study(zone: ClinicalZone, study_id: str, rule: Rule | str | None) -> Outcome:
    """Say what rules would do with a stored study, at the time of day when it was assembled last.

    Parameters
    ----------
    rule : Rule, str or None
        A rule, the name of a stored one (enabled or not), or None for all that are enabled.

    Raises
    ------
    RuleError
        If study or rule do not exist, or a rule cannot be evaluated.
    """
    with reading(zone.engine) as session:
        at = session.scalar(
            select(StudyRevision.assembled_at)
            .join(Study, and_(Study.id == StudyRevision.study_id, Study.revision == StudyRevision.number))
            .where(Study.id == study_id)
        )
        return decide(_rules(session, rule), facts.gather(session, study_id, at or now()))


def on_file(zone: ClinicalZone, path: Path, calling_ae_title: str, rule: Rule | str | None) -> Outcome:
    """Say what rules would do with a study that holds this one Part 10 file, now; its pixels are not read.

    Raises
    ------
    RuleError
        As :func:`on_study`, and if the file cannot be read.
    """
    try:
        header = read_header(path, max_inflated_bytes=MAX_FILE_BYTES)
    except HeaderError as error:
        raise RuleError(f"file: {error}") from error
    except OSError as error:
        raise RuleError(f"file: cannot be read (errno {error.errno})") from error
    with reading(zone.engine) as session:
        found = facts.of_header(session, header, calling_ae_title, now())
        return decide(_rules(session, rule), found)


class Upload:
    """A file that somebody sends to try rules on: it has no name, so that nothing stays whatever happens.

    Parameters
    ----------
    folder : Path
        On whose file system it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the block closes it
        self._left = MAX_FILE_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append; raises RuleError when it becomes longer than allowed."""
        self._left -= len(chunk)
        if self._left < 0:
            raise RuleError(f"file: expected at most {MAX_FILE_BYTES >> 20} MiB")
        self._file.write(chunk)

    @property
    def path(self) -> Path:
        """Where what was written so far can be read, for as long as the block lasts."""
        self._file.flush()
        return Path(f"/proc/self/fd/{self._file.fileno()}")


def _rules(session: Session, rule: Rule | str | None) -> Sequence[Rule]:
    if rule is None:
        return enabled_rules(session)
    if isinstance(rule, Rule):
        return [rule]
    stored = session.scalar(select(Rule).where(Rule.name == rule))
    if stored is None:
        raise RuleError("no rule of this name")
    return [stored]
