from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from appliance import actions, conditions, routing
from appliance.db.base import new_id, now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    ModelVersion,
    Result,
    Rule,
    Series,
    Study,
    StudyRevision,
)
from appliance.db.engine import reading, writing
from appliance.node import open_clinical
from appliance.routing import Facts
from appliance.settings import InferenceSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.node import ClinicalZone
    from appliance.settings import Settings

CHEST = Facts(
    {
        "Modality": frozenset({"DX"}),
        "BodyPartExamined": frozenset({"Chest"}),
        "StudyDescription": frozenset({"Thorax pa"}),
    },
    instances=2,
    calling_ae_title="PACS",
    sources=frozenset({"PACS", "radiology"}),
)


def rule(name: str = "r", **parts: Any) -> Rule:
    action = parts.pop("action", {"inference": True})
    return Rule(name=name, condition=parts, action=action, enabled=True, position=0)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, True),
        ({"modality": ["DX", "CR"]}, True),
        ({"modality": ["CT"]}, False),
        ({"body_part": ["CHEST"]}, True),
        ({"body_part": ["HAND"]}, False),
        ({"description": "thorax"}, True),
        ({"description": "^pa"}, False),
        ({"calling_ae_title": ["PACS"]}, True),
        ({"calling_ae_title": ["OTHER"]}, False),
        ({"modality": ["DX"], "description": "hand"}, False),
    ],
)
def test_a_rule_matches_when_all_its_conditions_hold(condition: dict[str, Any], expected: bool) -> None:
    assert conditions.evaluate(condition, CHEST).holds is expected


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"condition": {"modality": []}}, "condition.modality"),
        ({"condition": {"modality": "DX"}}, "condition.modality"),
        ({"condition": {"colour": ["red"]}}, "condition.colour"),
        ({"condition": {"description": "("}}, "condition.description"),
        ({"condition": {"description": "(a+)+$"}}, "condition.description"),
        ({"condition": ["DX"]}, "condition"),
        ({"condition": None}, "condition"),
        ({"action": {"priority": "urgent"}}, "action.priority"),
        ({"action": {"priority": None}}, "action.priority"),
        ({"action": {"destinations": None}}, "action.destinations"),
        ({"action": "research"}, "action"),
    ],
)
def test_a_rule_that_cannot_be_evaluated_is_an_error_not_a_missing_match(
    parts: dict[str, Any], field: str
) -> None:
    broken = Rule(**{"name": "night", "condition": {}, "action": {}, "enabled": True, "position": 0, **parts})
    with pytest.raises(routing.RuleError, match=rf"^rule 'night': {field}"):
        routing.decide([rule("a"), broken], CHEST)


def test_what_a_rule_would_do_matters_only_where_it_matches() -> None:
    other = rule("b", modality=["CT"], action={"priority": "urgent"})
    assert routing.decide([rule("a"), other], CHEST).rules == ("a",)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a*)*b", "(a|a)*$", "(.*a){20}", "a*" * 7, "x" * 201, "", "[", 7]
)
def test_a_pattern_that_could_run_for_ever_or_is_none_is_refused(pattern: object) -> None:
    with pytest.raises(routing.RuleError):
        conditions.check({"description": pattern})


@pytest.mark.parametrize(
    "action",
    [
        {"research": "yes"},
        {"inference": 1},
        {"destinations": "A"},
        {"destinations": [1]},
        {"priority": 10},
        {"priority": -1},
        {"priority": True},
        {"erase": True},
        {"models": "nodules"},
        {"models": [1]},
        {"discard": True},
        {"discard": "x" * 101},
        {"discard": "two\nlines"},
    ],
)
def test_an_action_that_is_none_is_refused(action: dict[str, Any]) -> None:
    with pytest.raises(routing.RuleError):
        actions.check(action)


def test_the_actions_of_all_matching_rules_join() -> None:
    rules = [
        rule("a", action={"research": True, "priority": 7, "destinations": ["Y"]}),
        rule("b", modality=["DX"], action={"inference": True, "priority": 1, "destinations": ["X", "Y"]}),
        rule("c", modality=["CT"], action={"destinations": ["Z"], "priority": 0}),
    ]
    outcome = routing.decide(rules, CHEST)
    assert outcome == routing.Outcome(("a", "b"), True, True, ("X", "Y"), 1)  # noqa: FBT003 - in order


def test_without_a_matching_rule_nothing_happens() -> None:
    assert routing.decide([rule(modality=["CT"])], CHEST) == routing.Outcome()


def add_revision(zone: ClinicalZone, study_id: str | None = None, *sop_instance_uids: str) -> tuple[str, str]:
    """Store instances of a study (a new one without id) as its next revision; return the ids of both."""
    with writing(zone.engine) as session:
        study = session.get(Study, study_id) if study_id else None
        if study is None:
            study = Study(study_instance_uid=f"2.25.{new_id()[:8]}", calling_ae_title="PACS", revision=0)
            session.add(study)
            session.flush()
        series = Series(study_id=study.id, series_instance_uid=f"2.25.{new_id()[:8]}", modality="DX")
        session.add(series)
        session.flush()
        for uid in sop_instance_uids:
            session.add(
                Instance(
                    series_id=series.id,
                    sop_instance_uid=uid,
                    sop_class_uid="1",
                    transfer_syntax_uid="1",
                    path=uid,
                    size_bytes=1,
                    sha256="0" * 64,
                )
            )
        study.revision += 1
        revision = StudyRevision(study_id=study.id, number=study.revision, instance_count=1)
        session.add(revision)
        session.flush()
        return study.id, revision.id


def apply(zone: ClinicalZone, revision_id: str) -> routing.Outcome:
    with writing(zone.engine) as session:
        return routing.apply(zone, session, revision_id)


def jobs(zone: ClinicalZone) -> list[tuple[str, str, int]]:
    with reading(zone.engine) as session:
        rows = session.scalars(select(ClinicalJob).order_by(ClinicalJob.kind)).all()
    return [(row.kind, row.subject_id, row.priority) for row in rows]


def test_an_assembled_study_goes_to_research_and_inference_once(clinical_zone: ClinicalZone) -> None:
    _, revision_id = add_revision(clinical_zone, None, "2.25.1")
    first, second = apply(clinical_zone, revision_id), apply(clinical_zone, revision_id)
    assert first == second
    assert first.rules == ("everything",)
    assert jobs(clinical_zone) == [("deidentify", revision_id, 5), ("infer", revision_id, 5)]
    with reading(clinical_zone.engine) as session:
        revision = session.get(StudyRevision, revision_id)
        kinds = session.scalars(select(ClinicalLedgerEntry.kind)).all()
    assert revision is not None
    (why,) = revision.rule_outcome.pop("explanation")
    assert why == {"rule": "everything", "matched": True, "why": "it applies to every study"}
    assert revision.rule_outcome == {
        "rules": ["everything"],
        "models": [],
        "discard": "",
        "research": True,
        "inference": True,
        "destinations": [],
        "priority": 5,
        "instances": 1,
    }
    assert routing.STUDY_ROUTED in kinds


def test_without_inference_here_no_job_waits_for_it_and_it_is_caught_up_for_a_day(
    make_node: Callable[..., Settings],
) -> None:
    zone = open_clinical(make_node(inference={"enabled": False}))
    _, old = add_revision(zone, None, "2.25.1")
    _, recent = add_revision(zone, None, "2.25.2")
    assert apply(zone, old).inference
    assert apply(zone, recent).inference
    assert {kind for kind, _, _ in jobs(zone)} == {"deidentify"}
    assert routing.catch_up(zone, now()) == 0
    with writing(zone.engine) as session:
        revision = session.get_one(StudyRevision, old)
        revision.assembled_at -= timedelta(seconds=routing.CATCH_UP_S + 60)

    on = replace(zone, settings=zone.settings.model_copy(update={"inference": InferenceSettings()}))
    assert routing.catch_up(on, now()) == 1
    assert routing.catch_up(on, now()) == 0
    assert [subject for kind, subject, _ in jobs(zone) if kind == "infer"] == [recent]
    zone.engine.dispose()


def test_a_disabled_rule_does_nothing(clinical_zone: ClinicalZone) -> None:
    with writing(clinical_zone.engine) as session:
        session.scalars(select(Rule)).one().enabled = False
    _, revision_id = add_revision(clinical_zone, None, "2.25.1")
    apply(clinical_zone, revision_id)
    assert jobs(clinical_zone) == []


def test_late_instances_go_the_same_way_again(clinical_zone: ClinicalZone) -> None:
    study_id, first = add_revision(clinical_zone, None, "2.25.1")
    apply(clinical_zone, first)
    _, second = add_revision(clinical_zone, study_id, "2.25.2")
    apply(clinical_zone, second)
    assert {subject for _, subject, _ in jobs(clinical_zone)} == {first, second}


def test_own_results_that_come_back_trigger_nothing(clinical_zone: ClinicalZone) -> None:
    study_id, first = add_revision(clinical_zone, None, "2.25.1")
    apply(clinical_zone, first)
    before = jobs(clinical_zone)
    with writing(clinical_zone.engine) as session:
        model = ModelVersion(name="m", version="1", package_sha256="0" * 64, path="m")
        session.add(model)
        session.flush()
        for uid in ("2.25.77", "2.25.78"):
            session.add(
                Result(
                    study_id=study_id,
                    study_revision_id=first,
                    model_version_id=model.id,
                    kind="sr",
                    sop_class_uid="1",
                    sop_instance_uid=uid,
                    path=uid,
                )
            )
    _, second = add_revision(clinical_zone, study_id, "2.25.77")
    assert apply(clinical_zone, second) == routing.Outcome(instances=1)
    _, alone = add_revision(clinical_zone, None, "2.25.78")
    assert apply(clinical_zone, alone) == routing.Outcome()
    assert jobs(clinical_zone) == before


def test_a_revision_that_is_not_there_is_an_error(clinical_zone: ClinicalZone) -> None:
    with pytest.raises(routing.RuleError):
        apply(clinical_zone, "f" * 32)
