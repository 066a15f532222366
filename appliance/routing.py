"""Rules: what happens with an assembled study, evaluated once per revision, stored with its reasons."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, func, select

from appliance import actions, conditions, facts, logs, merges
from appliance.actions import Explanation, Outcome
from appliance.conditions import Facts, RuleError
from appliance.db.clinical import (
    ClinicalJob,
    Instance,
    Result,
    Rule,
    Series,
    Study,
    StudyRevision,
    StudyState,
)
from appliance.db.engine import writing
from appliance.queueing import queue_missing
from appliance.work import enqueue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

__all__ = ["Facts", "Outcome", "RuleError", "apply", "apply_again", "catch_up", "decide", "enabled_rules"]

STUDY_ROUTED: Final = "study.routed"
STUDY_ROUTED_AGAIN: Final = "study.routed_again"
STUDY_DISCARDED: Final = "study.discarded"
CAUGHT_UP: Final = "routing.caught_up"
CATCH_UP_S: Final = 24 * 3600.0
NOTHING_NEW: Final = "nothing but results of ours is new"

_LOG = logs.logger(__name__)


def apply(zone: ClinicalZone, session: Session, revision_id: str) -> Outcome:
    """Match the rules on a study revision, store the outcome, enqueue its jobs in the caller's transaction.

    A revision that holds nothing new but our own results triggers nothing. Called again, it changes nothing:
    jobs have one key for each revision. After the commit the caller may wake workers; the reconciler does in
    any case. A study that a rule discards is marked so, with the rule's reason.

    Raises
    ------
    RuleError
        If the revision does not exist, or a rule cannot be evaluated.
    """
    revision = session.get(StudyRevision, revision_id)
    if revision is None:
        raise RuleError(f"study revision {revision_id}: does not exist")
    instances = _count_foreign(session, revision.study_id)
    outcome = Outcome(explanation=(Explanation("all rules", matched=False, why=NOTHING_NEW),))
    if instances > _counted_before(session, revision):
        outcome = decide(
            enabled_rules(session), facts.gather(session, revision.study_id, revision.assembled_at)
        )
    outcome = replace(outcome, instances=instances)
    revision.rule_outcome = outcome.as_json()
    _enqueue(zone, session, revision.id, outcome)
    if outcome.discard:
        _discard(zone, session, revision.study_id, outcome)
    _record(zone, session, STUDY_ROUTED, revision.id, outcome, "node")
    return outcome


def apply_again(zone: ClinicalZone, session: Session, study_id: str, actor: str) -> tuple[Outcome, int]:
    """Let today's rules decide of a study that is assembled, in the caller's transaction.

    What they ask for newly is done: research, models, and deliveries of the results that there are to
    destinations that have none of them. What was done stays done; nothing is delivered twice.

    Returns
    -------
    outcome : Outcome
    deliveries : int
        How many are new.

    Raises
    ------
    RuleError
        If the study cannot be decided of now, or the rules would discard it: then nothing is changed.
    """
    study, revision = _assembled(session, study_id)
    found = facts.gather(session, study_id, revision.assembled_at)
    outcome = replace(decide(enabled_rules(session), found), instances=found.instances)
    if outcome.discard:
        raise RuleError("the rules would discard this study now; nothing was changed")
    before = revision.rule_outcome
    revision.rule_outcome = outcome.as_json()
    study.state, study.reason = StudyState.ASSEMBLED, None
    asked = (before.get("inference") is True, sorted(before.get("models") or ()))
    if "infer" not in _enqueue(zone, session, revision.id, outcome) and (
        outcome.infers and asked != (outcome.inference, list(outcome.models))
    ):
        _infer_again(zone, session, revision.id, outcome)
    deliveries = queue_missing(session, study_id, outcome.destinations, outcome.priority)
    _record(zone, session, STUDY_ROUTED_AGAIN, revision.id, outcome, actor, deliveries=deliveries)
    return outcome, deliveries


def _assembled(session: Session, study_id: str) -> tuple[Study, StudyRevision]:
    found = session.execute(
        select(Study, StudyRevision)
        .join(StudyRevision, and_(StudyRevision.study_id == Study.id, StudyRevision.number == Study.revision))
        .where(Study.id == study_id, Study.state.in_([StudyState.ASSEMBLED, StudyState.DISCARDED]))
    ).first()
    if found is None:
        raise RuleError("the study is not assembled; the rules are asked when it is")
    if merges.is_disputed(session, study_id):
        raise RuleError(merges.DISPUTED)
    return found[0], found[1]


def enabled_rules(session: Session) -> Sequence[Rule]:
    """Return the rules that are asked, in their order."""
    return session.scalars(select(Rule).where(Rule.enabled).order_by(Rule.position, Rule.name)).all()


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
            if outcome.get("inference") is True or outcome.get("models"):
                key = f"infer:{revision.id}"
                queued = enqueue(
                    session, ClinicalJob, "infer", revision.id, key, priority=int(outcome["priority"])
                )
                jobs += queued is not None
    if jobs:
        _LOG.info(CAUGHT_UP, jobs=jobs)
    return jobs


def decide(rules: Sequence[Rule], found: Facts) -> Outcome:
    """Join the actions of all rules that match, and say of every rule why it did or did not.

    Raises
    ------
    RuleError
        Naming the rule that cannot be evaluated: it never counts as one that does not match.
    """
    explained = [(rule, explain(rule, found)) for rule in rules]
    outcome = actions.joined([rule for rule, said in explained if said.matched], fetched=found.fetched)
    return replace(outcome, explanation=tuple(said for _, said in explained))


def explain(rule: Rule, found: Facts) -> Explanation:
    """Say whether a rule matches, and why; raises as :func:`decide`."""
    try:
        verdict = conditions.evaluate(rule.condition, found)
        if verdict.holds:
            actions.check(rule.action)
    except RuleError as error:
        raise RuleError(f"rule {rule.name!r}: {error}") from error
    why = " and ".join(verdict.reasons)
    if verdict.holds and found.fetched and actions.spared(rule):
        why += "; its models and destinations do not apply to a fetched study, as it does not name them"
    return Explanation(rule.name, verdict.holds, why)


def _enqueue(zone: ClinicalZone, session: Session, revision_id: str, outcome: Outcome) -> list[str]:
    """Queue what is asked for, each kind once for a revision; return the kinds that are new."""
    inference = outcome.infers and zone.settings.inference.enabled  # else nobody would ever take the job
    wanted = [kind for kind, asks in (("deidentify", outcome.research), ("infer", inference)) if asks]
    return [
        kind
        for kind in wanted
        if enqueue(
            session, ClinicalJob, kind, revision_id, f"{kind}:{revision_id}", priority=outcome.priority
        )
    ]


def _infer_again(zone: ClinicalZone, session: Session, revision_id: str, outcome: Outcome) -> None:
    """Queue one more job for models that were not asked for; those that answered are not run again."""
    if zone.settings.inference.enabled:
        asked = hashlib.sha256(repr((outcome.inference, outcome.models)).encode()).hexdigest()[:16]
        key = f"infer:{revision_id}:{asked}"
        enqueue(session, ClinicalJob, "infer", revision_id, key, priority=outcome.priority)


def _discard(zone: ClinicalZone, session: Session, study_id: str, outcome: Outcome) -> None:
    study = session.get_one(Study, study_id)
    study.state, study.reason = StudyState.DISCARDED, outcome.discard
    zone.ledger.append(session, kind=STUDY_DISCARDED, subject_id=study_id, body={"rules": len(outcome.rules)})


def _record(
    zone: ClinicalZone,
    session: Session,
    kind: str,
    revision_id: str,
    outcome: Outcome,
    actor: str,
    **counts: int,
) -> None:
    body = {
        "research": outcome.research,
        "inference": outcome.infers,
        "rules": len(outcome.rules),
        "destinations": len(outcome.destinations),
        **counts,
    }
    zone.ledger.append(session, kind=kind, subject_id=revision_id, body=body, actor=actor)


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
