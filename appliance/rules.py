"""Rules as staff keep them: added, changed, switched off, removed; each change is in the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import actions, conditions
from appliance.conditions import RuleError
from appliance.db.clinical import ModelState, ModelVersion, Rule
from appliance.db.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

RULE_ADDED: Final = "rule.added"
RULE_CHANGED: Final = "rule.changed"
RULE_MOVED: Final = "rule.moved"
RULE_REMOVED: Final = "rule.removed"
MAX_NAME: Final = 64


@dataclass(frozen=True)
class RuleChange:
    """What to change of a rule; a condition or an action that is empty stays as it is, None likewise.

    Fields of a flat condition and of an action join those that the rule has; ``whole``: the condition is
    replaced.
    """

    condition: Mapping[str, Any] = field(default_factory=dict)
    action: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool | None = None
    whole: bool = False


def list_rules(session: Session) -> list[Rule]:
    """Return all rules in the order in which they are shown."""
    return list(session.scalars(select(Rule).order_by(Rule.position, Rule.name)))


def add_rule(session: Session, ledger: Ledger, name: str, change: RuleChange, *, actor: str) -> Rule:
    """Add a rule, in the caller's writing transaction.

    Raises
    ------
    RuleError
        If the name is taken or unfit, or a field is wrong; it names the field.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise RuleError(f"name: expected 1 to {MAX_NAME} printable characters")
    if session.scalar(select(Rule.id).where(Rule.name == name)) is not None:
        raise RuleError("name: another rule has it")
    _check(session, change)
    last = session.scalar(select(func.max(Rule.position))) or 0
    rule = Rule(
        name=name,
        position=last + 1,
        condition=dict(change.condition),
        action=dict(change.action),
        enabled=change.enabled is not False,
    )
    session.add(rule)
    session.flush()
    _record(session, ledger, RULE_ADDED, rule, actor)
    return rule


def change_rule(session: Session, ledger: Ledger, name: str, change: RuleChange, *, actor: str) -> Rule:
    """Change the given fields of a rule, in the caller's writing transaction; raises as for a new one."""
    rule = _rule(session, name)
    _check(session, change)
    rule.condition = _changed_condition(rule, change)
    rule.action = {**rule.action, **change.action}
    rule.enabled = rule.enabled if change.enabled is None else change.enabled
    _record(session, ledger, RULE_CHANGED, rule, actor)
    return rule


def _changed_condition(rule: Rule, change: RuleChange) -> dict[str, Any]:
    if change.whole or not change.condition:
        return dict(change.condition) if change.whole else rule.condition
    if not (conditions.is_flat(rule.condition) and conditions.is_flat(change.condition)):
        raise RuleError("condition: it is not of the flat form; expected it whole, as JSON")
    return {**rule.condition, **change.condition}


def move_rule(session: Session, ledger: Ledger, name: str, by: int, *, actor: str) -> None:
    """Move a rule up (below zero) or down the list, in the caller's writing transaction."""
    ordered, rule = list_rules(session), _rule(session, name)
    target = min(max(ordered.index(rule) + by, 0), len(ordered) - 1)
    ordered.remove(rule)
    ordered.insert(target, rule)
    for position, one in enumerate(ordered, start=1):
        one.position = position
    _record(session, ledger, RULE_MOVED, rule, actor)


def remove_rule(session: Session, ledger: Ledger, name: str, *, actor: str) -> None:
    """Remove a rule, in the caller's writing transaction."""
    rule = _rule(session, name)
    _record(session, ledger, RULE_REMOVED, rule, actor)
    session.delete(rule)


def _rule(session: Session, name: str) -> Rule:
    rule = session.scalar(select(Rule).where(Rule.name == name))
    if rule is None:
        raise RuleError("no rule of this name")
    return rule


def _check(session: Session, change: RuleChange) -> None:
    conditions.check(change.condition)
    actions.check(change.action)
    known = {
        "destinations": select(Peer.name).where(Peer.is_destination),
        "models": select(ModelVersion.name).where(ModelVersion.state != ModelState.REFUSED),
    }
    for name, statement in known.items():
        missing = set(change.action.get(name, ())) - set(session.scalars(statement))
        if missing:
            what = "destination among the peers" if name == "destinations" else "model"
            raise RuleError(f"action.{name}: no such {what}: {', '.join(sorted(missing))}")


def _record(session: Session, ledger: Ledger, kind: str, rule: Rule, actor: str) -> None:
    body = {"destinations": len(rule.action.get("destinations", ())), "enabled": int(rule.enabled)}
    ledger.append(session, kind=kind, subject_id=rule.id, body=body, actor=actor)
