"""Rules: what happens with an assembled study. Conditions and actions are rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, func, select

from appliance import logs
from appliance.db.clinical import ClinicalJob, Instance, Result, Rule, Series, Study, StudyRevision
from appliance.db.engine import writing
from appliance.errors import ApplianceError
from appliance.work import enqueue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

CONDITIONS: Final = ("modality", "body_part", "description", "calling_ae_title")
ACTIONS: Final = ("research", "inference", "destinations", "priority")
LOWEST_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5
MAX_PATTERN: Final = 200
MAX_DESCRIPTION: Final = 64  # PS3.5 table 6.2-1, LO
MAX_REPEATS: Final = 6
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_REPEAT: Final = re.compile(r"[*+{]")
STUDY_ROUTED: Final = "study.routed"
RULE_CHANGED: Final = "rule.changed"
CAUGHT_UP: Final = "routing.caught_up"
CATCH_UP_S: Final = 24 * 3600.0

_LOG = logs.logger(__name__)


class RuleError(ApplianceError):
    """A rule that cannot be applied; the message names the field."""


@dataclass(frozen=True)
class Facts:
    """What rules can see of a study."""

    modalities: frozenset[str]
    body_parts: frozenset[str]
    description: str
    calling_ae_title: str


@dataclass(frozen=True)
class Outcome:
    """What the rules decided; stored as ``StudyRevision.rule_outcome``.

    ``instances`` counts the study's instances that are not results of ours: a later revision that adds none
    of these triggers nothing.
    """

    rules: tuple[str, ...] = ()
    research: bool = False
    inference: bool = False
    destinations: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    instances: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as stored."""
        values = asdict(self)
        return {**values, "rules": list(self.rules), "destinations": list(self.destinations)}


def apply(zone: ClinicalZone, session: Session, revision_id: str) -> Outcome:
    """Match the rules on a study revision, store the outcome, enqueue its jobs in the caller's transaction.

    A revision that holds nothing new but our own results triggers nothing. Called again, it changes nothing:
    jobs have one key for each revision. After the commit the caller may wake workers; the reconciler does in
    any case.

    Raises
    ------
    RuleError
        If the revision does not exist, or a rule cannot be evaluated.
    """
    revision = session.get(StudyRevision, revision_id)
    if revision is None:
        raise RuleError(f"study revision {revision_id}: does not exist")
    instances = _count_foreign(session, revision.study_id)
    outcome = Outcome(instances=instances)
    if instances > _counted_before(session, revision):
        rules = session.scalars(select(Rule).where(Rule.enabled).order_by(Rule.position, Rule.name)).all()
        outcome = replace(decide(rules, gather(session, revision.study_id)), instances=instances)
    revision.rule_outcome = outcome.as_json()
    inference = outcome.inference and zone.settings.inference.enabled  # else nobody would ever take the job
    for wanted, kind in ((outcome.research, "deidentify"), (inference, "infer")):
        if wanted:
            enqueue(
                session, ClinicalJob, kind, revision.id, f"{kind}:{revision.id}", priority=outcome.priority
            )
    body = {"research": outcome.research, "inference": outcome.inference, "rules": len(outcome.rules)}
    zone.ledger.append(session, kind=STUDY_ROUTED, subject_id=revision.id, body=body)
    return outcome


def catch_up(zone: ClinicalZone, at: datetime) -> int:
    """Queue the inference that studies of the last day missed while it was off; return for how many.

    Older studies have been read without it and stay as they are.
    """
    if not zone.settings.inference.enabled:
        return 0
    jobs = 0
    with writing(zone.engine) as session:
        current = session.scalars(
            select(StudyRevision)
            .join(Study, and_(Study.id == StudyRevision.study_id, Study.revision == StudyRevision.number))
            .where(StudyRevision.assembled_at >= at - timedelta(seconds=CATCH_UP_S))
        ).all()
        for revision in current:
            outcome = revision.rule_outcome
            if outcome.get("inference") is True:
                key = f"infer:{revision.id}"
                queued = enqueue(
                    session, ClinicalJob, "infer", revision.id, key, priority=int(outcome["priority"])
                )
                jobs += queued is not None
    if jobs:
        _LOG.info(CAUGHT_UP, jobs=jobs)
    return jobs


def decide(rules: Sequence[Rule], facts: Facts) -> Outcome:
    """Join the actions of all rules that match: any may ask, the most urgent priority wins.

    Raises
    ------
    RuleError
        Naming the rule that cannot be evaluated: it never counts as one that does not match.
    """
    matched = [rule for rule in rules if _applies(rule, facts)]
    actions = [rule.action for rule in matched]
    names = {name for action in actions for name in action.get("destinations", ())}
    return Outcome(
        rules=tuple(rule.name for rule in matched),
        research=any(action.get("research") is True for action in actions),
        inference=any(action.get("inference") is True for action in actions),
        destinations=tuple(sorted(names)),
        priority=min(
            (action.get("priority", DEFAULT_PRIORITY) for action in actions), default=DEFAULT_PRIORITY
        ),
    )


def _applies(rule: Rule, facts: Facts) -> bool:
    try:
        applies = matches(rule.condition, facts)
        if applies:
            check_action(rule.action)
    except RuleError as error:
        raise RuleError(f"rule {rule.name!r}: {error}") from error
    return applies


def matches(condition: Mapping[str, Any], facts: Facts) -> bool:
    """Whether every condition that is given holds; raises like :func:`check_condition`."""
    check_condition(condition)
    wanted = {
        name: frozenset(condition.get(name, ())) for name in ("modality", "body_part", "calling_ae_title")
    }
    return (
        ("modality" not in condition or bool(wanted["modality"] & facts.modalities))
        and ("body_part" not in condition or bool(wanted["body_part"] & facts.body_parts))
        and ("calling_ae_title" not in condition or facts.calling_ae_title in wanted["calling_ae_title"])
        and ("description" not in condition or _found(condition["description"], facts.description))
    )


def check_condition(condition: object) -> None:
    """Refuse what is no condition.

    Raises
    ------
    RuleError
        Naming the field and what was expected.
    """
    if not isinstance(condition, Mapping):
        raise RuleError("condition: expected fields with values")
    for name, value in condition.items():
        if name not in CONDITIONS:
            raise RuleError(f"condition.{name}: unknown; expected one of {', '.join(CONDITIONS)}")
        if name == "description":
            _check_pattern(value)
        elif not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise RuleError(f"condition.{name}: expected a list of texts that is not empty")


def check_action(action: object) -> None:
    """Refuse what is no action; raises like :func:`check_condition`."""
    if not isinstance(action, Mapping):
        raise RuleError("action: expected fields with values")
    for name, value in action.items():
        if name not in ACTIONS:
            raise RuleError(f"action.{name}: unknown; expected one of {', '.join(ACTIONS)}")
        if name in {"research", "inference"} and not isinstance(value, bool):
            raise RuleError(f"action.{name}: expected true or false")
        if name == "destinations" and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise RuleError("action.destinations: expected a list of peer names")
        if name == "priority" and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LOWEST_PRIORITY
        ):
            raise RuleError(f"action.priority: expected 0 (most urgent) to {LOWEST_PRIORITY}")


def gather(session: Session, study_id: str) -> Facts:
    """Collect what rules can see of a study."""
    study = session.get(Study, study_id)
    if study is None:
        raise RuleError(f"study {study_id}: does not exist")
    series = session.execute(
        select(Series.modality, Series.body_part_examined).where(Series.study_id == study_id)
    ).all()
    return Facts(
        modalities=frozenset(row.modality for row in series if row.modality),
        body_parts=frozenset(row.body_part_examined.upper() for row in series if row.body_part_examined),
        description=study.study_description,
        calling_ae_title=study.calling_ae_title,
    )


def _count_foreign(session: Session, study_id: str) -> int:
    """Count the instances of a study that are not results which inference made here."""
    own = select(Result.sop_instance_uid)
    count = session.scalar(
        select(func.count())
        .select_from(Instance)
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study_id, Instance.sop_instance_uid.not_in(own))
    )
    return count or 0


def _counted_before(session: Session, revision: StudyRevision) -> int:
    """Return how many such instances the revision before this one had."""
    before = session.scalar(
        select(StudyRevision)
        .where(StudyRevision.study_id == revision.study_id, StudyRevision.number < revision.number)
        .order_by(StudyRevision.number.desc())
        .limit(1)
    )
    return 0 if before is None else int(before.rule_outcome.get("instances", 0))


def _check_pattern(value: object) -> None:
    """Refuse patterns that are no patterns, or that could run for ever on a text of 64 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
        raise RuleError(f"condition.description: expected a pattern of 1 to {MAX_PATTERN} characters")
    if _REPEATED_GROUP.search(value) or len(_REPEAT.findall(value)) > MAX_REPEATS:
        raise RuleError(
            f"condition.description: expected no repeated group and at most {MAX_REPEATS} repeats"
        )
    try:
        re.compile(value)
    except re.error as error:
        raise RuleError(f"condition.description: not a pattern ({error.msg} at {error.pos})") from error


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text[:MAX_DESCRIPTION], re.IGNORECASE) is not None
