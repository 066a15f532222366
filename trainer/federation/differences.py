"""What a plan asks for that an earlier one did not: field by field, in words, worst first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainer.federation.plan import Plan


class Grade(StrEnum):
    """What a change means for the site."""

    ASKS_MORE = "asks_more"
    OTHER = "other"
    ASKS_LESS = "asks_less"


class Worse(StrEnum):
    """In which direction a value asks more of a site."""

    UP = "up"
    DOWN = "down"
    ANY = "any"  # whatever it becomes, it is another study
    NEITHER = "neither"


@dataclass(frozen=True)
class Difference:
    """One field that differs; ``old`` and ``new`` are JSON values, None where the plan does not set it."""

    field: str
    words: str
    old: Any
    new: Any
    grade: Grade


# Field (dotted), words for people, direction that asks more. The order is that of the weight of a change;
# what has no row is ``other``, but for what is below a row's name.
_ROWS: Final[tuple[tuple[str, str, Worse], ...]] = (
    ("task.kind", "kind of task", Worse.ANY),
    ("task.label", "what is learned", Worse.ANY),
    ("task.segmentation", "what is segmented", Worse.ANY),
    ("task.anomaly", "how healthy pictures are learnt", Worse.NEITHER),
    ("task.anomaly.segments", "what counts as an anomaly", Worse.ANY),
    ("task.finding", "the finding that the model calls", Worse.ANY),
    ("task.modalities", "modalities that take part", Worse.ANY),
    ("privacy", "protection of the update", Worse.ANY),
    ("privacy.epsilon", "privacy loss allowed (epsilon)", Worse.UP),
    ("privacy.delta", "privacy loss allowed (delta)", Worse.UP),
    ("privacy.noise_multiplier", "noise on the update", Worse.DOWN),
    ("privacy.clip_norm", "clipping of the protected update", Worse.UP),
    ("privacy.share", "share of the update that leaves", Worse.UP),
    ("privacy.sampling_rate", "share of subjects in a training step", Worse.UP),
    ("max_update_norm", "largest norm of an update", Worse.UP),
    ("ethics_number", "ethics number", Worse.ANY),
    ("total_rounds", "rounds", Worse.UP),
    ("max_hours", "hours of computing here", Worse.UP),
    ("expires_at", "expiry", Worse.UP),
    ("minimum_cohort", "fewest subjects that a site must hold", Worse.DOWN),
    ("min_sites", "fewest sites in a round", Worse.DOWN),
    ("strategy.name", "strategy", Worse.ANY),
    ("strategy.parameters", "the strategy's parameters", Worse.NEITHER),
    ("compression", "compression of the update", Worse.NEITHER),
    ("encryption", "who alone can read updates and models", Worse.ANY),
    ("task.network", "network", Worse.ANY),
    ("task.segmentation.slices", "slices of the model's input", Worse.UP),
    ("task.segmentation.spacing_mm", "spacing of the model's input", Worse.NEITHER),
    ("task.preprocessing.rows", "rows of the model's input", Worse.UP),
    ("task.preprocessing.columns", "columns of the model's input", Worse.UP),
    ("task.preprocessing", "preprocessing", Worse.NEITHER),
    ("task.local.local_steps", "training steps per round", Worse.UP),
    ("task.local.batch_size", "cases per training step", Worse.UP),
    ("task.local", "local training", Worse.NEITHER),
    ("task.validation_fraction", "share of patients held out", Worse.NEITHER),
    ("task", "task", Worse.NEITHER),
    ("max_samples_per_site", "weight of a site in the mean", Worse.NEITHER),
    ("round_timeout_s", "seconds that a round waits for a site without progress", Worse.NEITHER),
    ("approval_wait_s", "seconds that sites wait for an approval", Worse.NEITHER),
    ("straggler_wait_s", "seconds that a round waits for the last sites", Worse.NEITHER),
    ("seed", "seed", Worse.NEITHER),
    ("name", "title", Worse.NEITHER),
    ("run_id", "run", Worse.NEITHER),
)
_UNLIMITED: Final = frozenset({"max_hours"})  # not set means without limit
_GRADES: Final = tuple(Grade)


def differences(old: Plan, new: Plan) -> tuple[Difference, ...]:
    """Compare a plan with an earlier one.

    Parameters
    ----------
    old : Plan
        What a person knows, for example the last plan that was approved.
    new : Plan
        What is asked for now.

    Returns
    -------
    tuple of Difference
        What asks more of the site first, then by the weight of the field.
    """
    before, after = _leaves(old.to_json()), _leaves(new.to_json())
    found = [
        _difference(field, before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]
    ranked = sorted(found, key=lambda one: (_GRADES.index(one.grade), _position(one.field), one.field))
    return tuple(ranked)


def _difference(field: str, old: Any, new: Any) -> Difference:
    position = _position(field)
    if position == len(_ROWS):
        return Difference(field, field, old, new, Grade.OTHER)
    name, words, worse = _ROWS[position]
    if name != field:
        words = f"{words}: {field[len(name) + 1 :]}"
    return Difference(field, words, old, new, _grade(field, worse, old, new))


def _grade(field: str, worse: Worse, old: Any, new: Any) -> Grade:
    if field.startswith("privacy.") and old is None:
        return Grade.ASKS_LESS
    if worse in {Worse.ANY, Worse.NEITHER}:
        return Grade.ASKS_MORE if worse is Worse.ANY else Grade.OTHER
    if old is None or new is None:
        limits = field in _UNLIMITED or field.startswith("privacy.")
        return Grade.ASKS_MORE if (new is None) == limits else Grade.ASKS_LESS
    if not _comparable(old, new):
        return Grade.ASKS_MORE
    return Grade.ASKS_MORE if (new > old) == (worse is Worse.UP) else Grade.ASKS_LESS


def _comparable(old: Any, new: Any) -> bool:
    """Whether both are numbers, or both moments in UTC as text, which sort as they follow one another."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    return numbers or (isinstance(old, str) and isinstance(new, str))


def _position(field: str) -> int:
    """Return the row that is about a field: its own, or the nearest above it."""
    best, length = len(_ROWS), -1
    for position, (name, _, _) in enumerate(_ROWS):
        if (field == name or field.startswith(f"{name}.")) and len(name) > length:
            best, length = position, len(name)
    return best


def _leaves(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return every value that is no object, by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found
