"""Retention rules as staff keep them; each change is in the ledger. A new node has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import conditions
from appliance.conditions import RuleError
from appliance.db.clinical import RetentionRule, Study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

ADDED: Final = "retention.rule_added"
CHANGED: Final = "retention.rule_changed"
REMOVED: Final = "retention.rule_removed"
HELD: Final = "study.held"
RELEASED: Final = "study.hold_released"
MAX_NAME: Final = 64
MAX_DAYS: Final = 36_500


def list_rules(session: Session) -> list[RetentionRule]:
    """Return all rules, by name."""
    return list(session.scalars(select(RetentionRule).order_by(RetentionRule.name)))


def add_rule(
    session: Session,
    ledger: Ledger,
    name: str,
    condition: Mapping[str, Any],
    keep_days: int,
    *,
    actor: str,
) -> RetentionRule:
    """Add a rule, in the caller's writing transaction.

    Raises
    ------
    RuleError
        If the name is taken or unfit, or a field is wrong; it names the field.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise RuleError(f"name: expected 1 to {MAX_NAME} printable characters")
    if session.scalar(select(RetentionRule.id).where(RetentionRule.name == name)) is not None:
        raise RuleError("name: another rule has it")
    conditions.check(condition)
    if conditions.names(condition, "time"):
        raise RuleError("condition.time: expected no time of day; studies are deleted at any")
    if not 1 <= keep_days <= MAX_DAYS:
        raise RuleError(f"keep_days: expected 1 to {MAX_DAYS}")
    rule = RetentionRule(name=name, condition=dict(condition), keep_days=keep_days)
    session.add(rule)
    session.flush()
    ledger.append(session, kind=ADDED, subject_id=rule.id, body={"keep_days": keep_days}, actor=actor)
    return rule


def switch_rule(session: Session, ledger: Ledger, name: str, *, enabled: bool, actor: str) -> None:
    """Apply a rule or not, in the caller's writing transaction."""
    rule = _rule(session, name)
    rule.enabled = enabled
    body = {"keep_days": rule.keep_days, "enabled": enabled}
    ledger.append(session, kind=CHANGED, subject_id=rule.id, body=body, actor=actor)


def remove_rule(session: Session, ledger: Ledger, name: str, *, actor: str) -> None:
    """Remove a rule, in the caller's writing transaction."""
    rule = _rule(session, name)
    ledger.append(session, kind=REMOVED, subject_id=rule.id, actor=actor)
    session.delete(rule)


def hold(session: Session, ledger: Ledger, study_id: str, *, on: bool, actor: str) -> bool:
    """Keep a study whatever the rules say, or no longer; return whether that is new.

    Raises
    ------
    RuleError
        If there is no such study.
    """
    study = session.scalar(select(Study).where(Study.id == study_id).with_for_update())
    if study is None:
        raise RuleError("the study does not exist")
    if study.on_hold is on:
        return False
    study.on_hold = on
    ledger.append(session, kind=HELD if on else RELEASED, subject_id=study_id, actor=actor)
    return True


def _rule(session: Session, name: str) -> RetentionRule:
    rule = session.scalar(select(RetentionRule).where(RetentionRule.name == name))
    if rule is None:
        raise RuleError("no retention rule of this name")
    return rule
