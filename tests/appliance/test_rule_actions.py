from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from appliance import facts, intake, merges, routing, serving_rows, tryout
from appliance.db.base import new_id, now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    ModelVersion,
    QuarantineItem,
    Result,
    Rule,
    Series,
    Study,
    StudyRevision,
)
from appliance.db.engine import make_engine, reading, writing
from appliance.db.peers import Delivery, Fetch, FetchedStudy, Peer
from appliance.node import ClinicalZone, open_clinical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from appliance.settings import Settings


@pytest.fixture
def zone(make_node: Callable[..., Settings], clinical_url: str) -> Iterator[ClinicalZone]:
    opened = open_clinical(make_node())
    opened.engine.dispose()
    engine = make_engine(clinical_url)
    yield ClinicalZone(
        settings=opened.settings,
        root=opened.root,
        engine=engine,
        keys=opened.keys,
        ledger=opened.ledger,
        wake=lambda *_: True,
    )
    engine.dispose()


def add_rule(zone: ClinicalZone, action: dict[str, Any], condition: dict[str, Any] | None = None) -> None:
    with writing(zone.engine) as session:
        session.add(Rule(name=new_id()[:8], condition=condition or {}, action=action))


def add_study(zone: ClinicalZone, **values: Any) -> str:
    with writing(zone.engine) as session:
        study = Study(
            **{
                "study_instance_uid": f"2.25.{new_id()[:8]}",
                "calling_ae_title": "PACS",
                "instance_count": 1,
                "revision": 0,
                "last_received_at": now(),
                **values,
            }
        )
        session.add(study)
        session.flush()
        add_instance(session, study.id)
        return study.id


def add_instance(session: Session, study_id: str, **values: Any) -> None:
    series = Series(study_id=study_id, series_instance_uid=new_id(), **{"modality": "CT", **values})
    session.add(series)
    session.flush()
    session.add(
        Instance(
            series_id=series.id,
            sop_instance_uid=new_id(),
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2",
            path=new_id(),
            size_bytes=1,
            sha256="0" * 64,
            calling_ae_title="PACS",
        )
    )


def add_result(zone: ClinicalZone, study_id: str, **values: Any) -> str:
    with writing(zone.engine) as session:
        model = ModelVersion(name="m", version="1", package_sha256=new_id(), path="m", state="active")
        session.add(model)
        session.flush()
        revision = session.scalars(select(StudyRevision).where(StudyRevision.study_id == study_id)).one()
        result = Result(
            study_id=study_id,
            study_revision_id=revision.id,
            model_version_id=model.id,
            kind="sr",
            sop_class_uid="1",
            sop_instance_uid=new_id(),
            path="r",
            **values,
        )
        session.add(result)
        session.flush()
        return result.id


def add_destination(zone: ClinicalZone, name: str) -> str:
    with writing(zone.engine) as session:
        peer = Peer(name=name, ae_title=name.upper(), host="127.0.0.1", port=104, is_destination=True)
        session.add(peer)
        session.flush()
        return peer.id


def rows(zone: ClinicalZone, model: type[Any]) -> list[Any]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(model)))


def kinds(zone: ClinicalZone) -> list[str]:
    return sorted(job.kind for job in rows(zone, ClinicalJob))


def again(zone: ClinicalZone, study_id: str) -> tuple[routing.Outcome, int]:
    with writing(zone.engine) as session:
        return routing.apply_again(zone, session, study_id, "u")


def test_a_discarded_study_goes_nowhere_and_says_why(zone: ClinicalZone) -> None:
    add_rule(zone, {"research": True, "inference": True})
    add_rule(zone, {"discard": "test studies"}, {"attribute": "Modality", "in": ["CT"]})
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    (study,) = rows(zone, Study)
    assert (study.state, study.reason) == ("discarded", "test studies")
    assert rows(zone, ClinicalJob) == []
    assert "study.discarded" in {entry.kind for entry in rows(zone, ClinicalLedgerEntry)}
    assert intake.assemble(zone, study_id) is None
    (revision,) = rows(zone, StudyRevision)
    assert {item["matched"] for item in revision.rule_outcome["explanation"]} == {True}


def test_a_study_of_two_patients_is_never_discarded(zone: ClinicalZone) -> None:
    add_rule(zone, {"discard": "test studies"})
    study_id = add_study(zone)
    with writing(zone.engine) as session:
        session.add(
            QuarantineItem(
                stage="index",
                reason_code=merges.PATIENT_MISMATCH,
                reason="-",
                study_id=study_id,
                dedupe_key="index:1",
            )
        )
    with pytest.raises(intake.DisputedError):
        intake.assemble(zone, study_id)
    assert rows(zone, Study)[0].state == "receiving"


def test_a_rule_names_the_models_that_run(zone: ClinicalZone) -> None:
    with writing(zone.engine) as session:
        for name, state in (("nodule", "active"), ("bleed", "active"), ("nodule", "shadow")):
            session.add(
                ModelVersion(name=name, version=state, package_sha256=new_id(), path="m", state=state)
            )
    add_rule(zone, {"models": ["nodule"]})
    revision_id = intake.assemble(zone, add_study(zone))
    assert revision_id is not None
    assert kinds(zone) == ["infer"]
    with reading(zone.engine) as session:
        found = serving_rows.load(session, revision_id)
    assert found is not None
    assert sorted((model.name, model.state) for model in found.models) == [
        ("nodule", "active"),
        ("nodule", "shadow"),
    ]
    add_rule(zone, {"inference": True})
    every = intake.assemble(zone, add_study(zone))
    with reading(zone.engine) as session:
        found = serving_rows.load(session, str(every))
    assert found is not None
    assert {model.name for model in found.models} == {"nodule", "bleed"}


def fetch(zone: ClinicalZone, study_id: str, seconds: float) -> None:
    """Note that a fetch asked for the study, so long before the first of it came."""
    with writing(zone.engine) as session:
        study = session.get_one(Study, study_id)
        peer = Peer(name=new_id()[:8], ae_title="ARCHIVE", host="127.0.0.1", is_archive=True)
        session.add(peer)
        session.flush()
        asked = Fetch(peer_id=peer.id, created_at=study.first_received_at - timedelta(seconds=seconds))
        session.add(asked)
        session.flush()
        session.add(FetchedStudy(fetch_id=asked.id, study_instance_uid=study.study_instance_uid, attempts=1))


def test_models_and_destinations_are_not_for_fetched_studies_unless_a_rule_says_so(
    zone: ClinicalZone,
) -> None:
    add_rule(zone, {"research": True, "inference": True, "destinations": ["ws"], "priority": 1})
    study_id = add_study(zone)
    fetch(zone, study_id, 60)
    intake.assemble(zone, study_id)
    (revision,) = rows(zone, StudyRevision)
    outcome = revision.rule_outcome
    assert (outcome["research"], outcome["priority"]) == (True, 1)
    assert (outcome["inference"], outcome["models"], outcome["destinations"]) == (False, [], [])
    assert "do not apply to a fetched study" in outcome["explanation"][0]["why"]
    assert kinds(zone) == ["deidentify"]
    add_rule(zone, {"inference": True}, {"fetched": True})
    assert again(zone, study_id)[0].inference
    assert kinds(zone) == ["deidentify", "infer"]


def test_a_study_that_was_here_before_the_fetch_is_none_that_was_fetched(zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    fetch(zone, study_id, -60)
    with reading(zone.engine) as session:
        assert not facts.gather(session, study_id, now()).fetched


def test_rules_see_all_series_and_sources_of_a_study(zone: ClinicalZone) -> None:
    study_id = add_study(zone, study_description="Thorax")
    with writing(zone.engine) as session:
        add_instance(session, study_id, modality="SR", series_description="report", station_name="WS")
        session.add(Peer(name="radiology", ae_title="PACS", host="127.0.0.1", may_send=True))
    with reading(zone.engine) as session:
        found = facts.gather(session, study_id, now())
    assert found.of("Modality") == {"CT", "SR"}
    assert found.of("SeriesDescription") == {"report"}
    assert found.of("StudyDescription") == {"Thorax"}
    assert found.of("SOPClassUID") == {"1.2.840.10008.5.1.4.1.1.2"}
    assert found.instances == 2
    assert found.sources == {"PACS", "radiology"}


def test_applied_again_rules_deliver_to_new_destinations_and_repeat_nothing(zone: ClinicalZone) -> None:
    first, _ = add_destination(zone, "first"), add_destination(zone, "second")
    add_rule(zone, {"destinations": ["first"], "inference": True})
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    current = add_result(zone, study_id)
    add_result(zone, study_id, superseded=True)
    add_result(zone, study_id, shadow=True)
    with writing(zone.engine) as session:
        session.add(Delivery(result_id=current, peer_id=first, state="delivered"))
    assert again(zone, study_id)[1] == 0
    add_rule(zone, {"destinations": ["second", "unknown"]})
    assert again(zone, study_id)[1] == 1
    assert again(zone, study_id)[1] == 0
    states = sorted((row.result_id == current, row.state) for row in rows(zone, Delivery))
    assert states == [(True, "delivered"), (True, "queued")]
    assert kinds(zone) == ["deliver", "infer"]
    entries = [row for row in rows(zone, ClinicalLedgerEntry) if row.kind == "study.routed_again"]
    assert {entry.actor for entry in entries} == {"u"}


def test_applied_again_rules_run_models_that_were_not_asked(zone: ClinicalZone) -> None:
    add_rule(zone, {"models": ["nodule"]})
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    again(zone, study_id)
    assert kinds(zone) == ["infer"]
    add_rule(zone, {"models": ["bleed"]})
    again(zone, study_id)
    again(zone, study_id)
    assert kinds(zone) == ["infer", "infer"]


def test_a_discarded_study_comes_back_when_the_rules_are_mended(zone: ClinicalZone) -> None:
    add_rule(zone, {"discard": "test studies"})
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    with pytest.raises(routing.RuleError, match="would discard"):
        again(zone, study_id)
    with writing(zone.engine) as session:
        session.scalars(select(Rule)).one().action = {"research": True}
    again(zone, study_id)
    (study,) = rows(zone, Study)
    assert (study.state, study.reason) == ("assembled", None)
    assert kinds(zone) == ["deidentify"]


def test_rules_are_not_applied_again_to_what_is_not_assembled(zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    with pytest.raises(routing.RuleError, match="not assembled"):
        again(zone, study_id)


def test_a_rule_that_fails_to_evaluate_stops_everything_that_asks(zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    add_rule(zone, {"research": True}, {"any": []})
    for ask in (lambda: again(zone, study_id), lambda: tryout.on_study(zone, study_id, None)):
        with pytest.raises(routing.RuleError, match=r"condition\.any"):
            ask()


def test_trying_a_rule_on_a_study_changes_nothing(zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    intake.assemble(zone, study_id)
    rule = tryout.unsaved({"attribute": "Modality", "in": ["CT"]}, {"discard": "gone"})
    outcome = tryout.on_study(zone, study_id, rule)
    assert outcome.discard == "gone"
    assert outcome.explanation[0].text == "this rule: matched because Modality is one of CT (CT)"
    assert rows(zone, Study)[0].state == "assembled"
    assert rows(zone, ClinicalJob) == []


def test_an_upload_leaves_no_name_and_no_more_than_allowed(
    zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tryout, "MAX_FILE_BYTES", 1000)
    before = sorted(zone.root.iterdir())
    with tryout.Upload(zone.root) as upload:
        upload.write(b"x" * 900)
        assert upload.path.read_bytes() == b"x" * 900
        assert sorted(zone.root.iterdir()) == before
        with pytest.raises(routing.RuleError, match="at most"):
            upload.write(b"x" * 101)
