"""Counts of checks by the ten actions of the MIDI-B benchmark, and the table of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


class Action(StrEnum):
    """What must have happened to a value; the last three are this project's."""

    TEXT_REMOVED = "text removed"
    DATE_SHIFTED = "date shifted"
    UID_CHANGED = "UID changed"
    UID_CONSISTENT = "UID consistent"
    PATIENT_ID_CONSISTENT = "patient ID consistent"
    PIXELS_HIDDEN = "pixels hidden"
    TAG_RETAINED = "tag retained"
    TEXT_NOT_NULL = "text not null"
    TEXT_RETAINED = "text retained"
    PIXELS_RETAINED = "pixels retained"
    FILE_PRESENT = "file released or stopped with a reason"
    META_EQUALS_DATASET = "meta information equals data set"
    REFERENCE_RESOLVES = "reference leads to its instance"


PATIENT_IDENTITY: Final = frozenset({
    Action.TEXT_REMOVED, Action.DATE_SHIFTED, Action.UID_CHANGED, Action.UID_CONSISTENT,
    Action.PATIENT_ID_CONSISTENT, Action.PIXELS_HIDDEN,
})  # fmt: skip


@dataclass
class Scores:
    """Counts by action, and where checks failed: file and attribute, never a value."""

    checks: Counter[Action] = field(default_factory=Counter)
    failures: list[tuple[Action, str]] = field(default_factory=list)
    stopped: Counter[str] = field(default_factory=Counter)
    released: int = 0

    def note(self, action: Action, passed: bool, where: str) -> None:  # an outcome
        """Count one check."""
        self.checks[action] += 1
        if not passed:
            self.failures.append((action, where))

    def percent(self, actions: Iterable[Action]) -> float:
        """Return how many of a hundred checks passed."""
        chosen = set(actions)
        total = sum(self.checks[action] for action in chosen)
        failed = sum(action in chosen for action, _ in self.failures)
        return 100.0 * (total - failed) / total if total else 0.0

    def table(self) -> str:
        """Return the table that people read."""
        lines = ["| category | action | checks | failed | passed, % |", "| --- | --- | --- | --- | --- |"]
        failed = Counter(action for action, _ in self.failures)
        for action in Action:
            category = "patient identity" if action in PATIENT_IDENTITY else "usefulness"
            count = self.checks[action]
            lines.append(
                f"| {category} | {action} | {count} | {failed[action]} | {self.percent([action]):.3f} |"
            )
        lines.append(f"| patient identity | all | | | {self.percent(PATIENT_IDENTITY):.3f} |")
        lines.append(f"| all | all | {self.checks.total()} | {failed.total()} | {self.percent(Action):.3f} |")
        return "\n".join(lines)
