"""Rules as staff keep them: added, changed, switched off, removed; each change is in the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance.db.clinical import Peer, Rule
from appliance.routing import RULE_CHANGED, RuleError, check_action, check_condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

RULE_ADDED: Final = "rule.added"
RULE_REMOVED: Final = "rule.removed"
MAX_NAME: Final = 64


@dataclass(frozen=True)
class RuleChange:
    """What to change of a rule; a condition or an action that is empty stays as it is, None likewise."""

    condition: Mapping[str, Any] = field(default_factory=dict)
    action: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool | None = None


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
    rule.condition = {**rule.condition, **change.condition}
    rule.action = {**rule.action, **change.action}
    rule.enabled = rule.enabled if change.enabled is None else change.enabled
    _record(session, ledger, RULE_CHANGED, rule, actor)
    return rule


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
    check_condition(change.condition)
    check_action(change.action)
    wanted = set(change.action.get("destinations", ()))
    known = set(session.scalars(select(Peer.name).where(Peer.is_destination)))
    if wanted - known:
        raise RuleError(f"action.destinations: no such destination among the peers: {sorted(wanted - known)}")


def _record(session: Session, ledger: Ledger, kind: str, rule: Rule, actor: str) -> None:
    body = {"destinations": len(rule.action.get("destinations", ())), "enabled": int(rule.enabled)}
    ledger.append(session, kind=kind, subject_id=rule.id, body=body, actor=actor)
