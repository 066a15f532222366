"""Actions of rules: what they ask for, checked, and how those of several rules join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance.grammar import RuleError, names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.db.clinical import Rule

ACTIONS: Final = ("research", "inference", "models", "destinations", "priority", "discard")
NOT_FOR_FETCHED: Final = ("inference", "models", "destinations")
LOWEST_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5
MAX_REASON: Final = 100
MAX_NAMES: Final = 50


@dataclass(frozen=True)
class Explanation:
    """Why one rule applied to a study revision, or did not."""

    rule: str
    matched: bool
    why: str

    @property
    def text(self) -> str:
        """Say it in one line."""
        return f"{self.rule}: {'matched' if self.matched else 'did not match'} because {self.why}"


@dataclass(frozen=True)
class Outcome:
    """What the rules decided; stored as ``StudyRevision.rule_outcome``.

    ``inference`` asks for all models that serve, ``models`` for those of these names. ``instances`` counts
    the study's instances that are not results of ours: a later revision that adds none of these triggers
    nothing.
    """

    rules: tuple[str, ...] = ()
    research: bool = False
    inference: bool = False
    destinations: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    instances: int = 0
    models: tuple[str, ...] = ()
    discard: str = ""  # the reason; nothing else is done then
    explanation: tuple[Explanation, ...] = field(default=(), compare=False)

    @property
    def infers(self) -> bool:
        """Whether any model is asked for."""
        return self.inference or bool(self.models)

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as stored."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


def joined(matched: Sequence[Rule], *, fetched: bool) -> Outcome:
    """Join the actions of the rules that match: any may ask, the most urgent priority wins.

    A rule that discards keeps all others from doing anything. Of a rule that does not name ``fetched``,
    models and destinations do not apply to a study that came by a fetch of ours.
    """
    discards = [rule.action["discard"] for rule in matched if rule.action.get("discard")]
    rules = tuple(rule.name for rule in matched)
    if discards:
        return Outcome(rules=rules, discard=discards[0])
    actions = [_for_study(rule, fetched=fetched) for rule in matched]
    return Outcome(
        rules=rules,
        research=any(action.get("research") is True for action in actions),
        inference=any(action.get("inference") is True for action in actions),
        models=_union(actions, "models"),
        destinations=_union(actions, "destinations"),
        priority=min(
            (action.get("priority", DEFAULT_PRIORITY) for action in actions), default=DEFAULT_PRIORITY
        ),
    )


def spared(rule: Rule) -> bool:
    """Whether a rule would do more with a study that did not come by a fetch of ours."""
    asks = any(rule.action.get(name) for name in NOT_FOR_FETCHED)
    return asks and not names(rule.condition, "fetched")


def _for_study(rule: Rule, *, fetched: bool) -> Mapping[str, Any]:
    if not fetched or not spared(rule):
        return rule.action
    return {name: value for name, value in rule.action.items() if name not in NOT_FOR_FETCHED}


def _union(actions: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    return tuple(sorted({item for action in actions for item in action.get(name, ())}))


def check(action: object) -> None:
    """Refuse what is no action.

    Raises
    ------
    RuleError
        Naming the field and what was expected.
    """
    if not isinstance(action, Mapping):
        raise RuleError("action: expected fields with values")
    for name, value in action.items():
        if name not in ACTIONS:
            raise RuleError(f"action.{name}: unknown; expected one of {', '.join(ACTIONS)}")
        fits, expected = _CHECKS[name]
        if not fits(value):
            raise RuleError(f"action.{name}: expected {expected}")


def describe(action: Mapping[str, Any]) -> str:
    """Write an action in words."""
    if action.get("discard"):
        return f"discard ({action['discard']})"
    parts = ["all models"] if action.get("inference") else []
    parts += [f"models {', '.join(action['models'])}"] if action.get("models") else []
    parts += ["research"] if action.get("research") else []
    parts += [f"results to {', '.join(action['destinations'])}"] if action.get("destinations") else []
    if action.get("priority", DEFAULT_PRIORITY) != DEFAULT_PRIORITY:
        parts.append(f"priority {action['priority']}")
    return ", ".join(parts) or "nothing"


def _is_names(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) <= MAX_NAMES and all(isinstance(item, str) for item in value)
    )


def _is_priority(value: object) -> bool:
    return type(value) is int and 0 <= value <= LOWEST_PRIORITY


def _is_reason(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_REASON and value.isprintable()


_BOOLEAN: Final = (lambda value: isinstance(value, bool), "true or false")
_CHECKS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = MappingProxyType(
    {
        "research": _BOOLEAN,
        "inference": _BOOLEAN,
        "models": (_is_names, f"a list of at most {MAX_NAMES} names of models"),
        "destinations": (_is_names, "a list of peer names"),
        "priority": (_is_priority, f"0 (most urgent) to {LOWEST_PRIORITY}"),
        "discard": (_is_reason, f"a reason of at most {MAX_REASON} printable characters, empty for none"),
    }
)
