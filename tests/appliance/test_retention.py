from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from appliance import cli, erasing, retention, retention_rules, work
from appliance.conditions import RuleError
from appliance.db.base import new_id, now
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    ModelVersion,
    QuarantineItem,
    Result,
    RetentionRule,
    Series,
    Study,
    StudyRevision,
)
from appliance.db.engine import make_engine, reading, writing
from appliance.db.peers import Delivery, Peer
from appliance.node import ClinicalZone, open_clinical
from appliance.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from appliance.settings import Settings

OLD_DAYS = 40


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


def add_study(zone: ClinicalZone, days: float = OLD_DAYS, modality: str = "CT", **values: Any) -> str:
    """Store an assembled study with two instances on disk that came so long ago."""
    with writing(zone.engine) as session:
        study = Study(
            **{
                "study_instance_uid": f"2.25.{new_id()[:8]}",
                "state": "assembled",
                "revision": 1,
                "instance_count": 2,
                "last_received_at": now() - timedelta(days=days),
                **values,
            }
        )
        session.add(study)
        session.flush()
        series = Series(study_id=study.id, series_instance_uid=new_id(), modality=modality)
        session.add_all([series, StudyRevision(study_id=study.id, number=1, instance_count=2)])
        session.flush()
        for _ in range(2):
            add_instance(zone, session, series.id)
        return study.id


def add_instance(zone: ClinicalZone, session: Session, series_id: str) -> None:
    row_id = new_id()
    path = f"instances/20260101/0{row_id[0].translate(str.maketrans('abcdef', '012345'))}/{row_id}.dcm"
    (zone.root / path).parent.mkdir(parents=True, exist_ok=True)
    (zone.root / path).write_bytes(b"x" * 100)
    session.add(
        Instance(
            id=row_id,
            series_id=series_id,
            sop_instance_uid=new_id(),
            sop_class_uid="1",
            transfer_syntax_uid="1",
            path=path,
            size_bytes=100,
            sha256="0" * 64,
        )
    )


def add_result(zone: ClinicalZone, study_id: str, delivery: str | None, **values: Any) -> None:
    """Store a result of a study with a file, and how far its delivery is."""
    with writing(zone.engine) as session:
        model = ModelVersion(name="m", version="1", package_sha256=new_id(), path="m")
        peer = Peer(name=new_id()[:8], ae_title="WS", host="127.0.0.1", port=1, is_destination=True)
        session.add_all([model, peer])
        session.flush()
        revision = session.scalars(select(StudyRevision).where(StudyRevision.study_id == study_id)).one()
        revision.rule_outcome = {"destinations": [peer.name]}
        path = f"results/{new_id()}.dcm"
        (zone.root / path).parent.mkdir(parents=True, exist_ok=True)
        (zone.root / path).write_bytes(b"r" * 10)
        result = Result(
            study_id=study_id,
            study_revision_id=revision.id,
            model_version_id=model.id,
            kind="sr",
            sop_class_uid="1",
            sop_instance_uid=new_id(),
            path=path,
            size_bytes=10,
            **values,
        )
        session.add(result)
        session.flush()
        if delivery is not None:
            session.add(Delivery(result_id=result.id, peer_id=peer.id, state=delivery))


def add_rule(zone: ClinicalZone, keep_days: int, condition: dict[str, Any] | None = None) -> None:
    with writing(zone.engine) as session:
        retention_rules.add_rule(session, zone.ledger, new_id()[:8], condition or {}, keep_days, actor="u")


def rows(zone: ClinicalZone, model: type[Any]) -> list[Any]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(model)))


def files(zone: ClinicalZone) -> set[str]:
    return {
        str(path.relative_to(zone.root))
        for name in erasing.FOLDERS
        for path in (zone.root / name).rglob("*.dcm")
    }


def test_without_a_rule_nothing_is_ever_deleted(zone: ClinicalZone) -> None:
    add_study(zone, days=5000)
    assert retention.run(zone, now()) == 0
    assert retention.preview(zone, now()).studies == 0
    assert len(rows(zone, Study)) == 1


def test_a_study_past_its_time_goes_with_all_that_is_its_own(zone: ClinicalZone) -> None:
    study_id, kept = add_study(zone), add_study(zone, days=10)
    add_result(zone, study_id, "delivered")
    with writing(zone.engine) as session:
        revision = session.scalars(select(StudyRevision).where(StudyRevision.study_id == study_id)).one()
        session.add(ClinicalJob(kind="infer", subject_id=revision.id, dedupe_key="infer:1", state="done"))
        instance = session.scalars(
            select(Instance).join(Series).where(Series.study_id == study_id).limit(1)
        ).one()
        session.add(
            QuarantineItem(
                stage="deidentify",
                reason_code="x",
                reason="-",
                study_id=study_id,
                instance_id=instance.id,
                path=instance.path,
                dedupe_key="d",
                resolved_at=now(),
            )
        )
    add_rule(zone, 30)
    before = retention.preview(zone, now())
    assert (before.studies, before.instances, before.size_bytes, before.complete) == (1, 2, 210, True)
    assert retention.run(zone, now()) == 1
    assert [study.id for study in rows(zone, Study)] == [kept]
    assert rows(zone, Result) == rows(zone, Delivery) == []
    assert files(zone) == {instance.path for instance in rows(zone, Instance)}
    assert len(files(zone)) == 2
    (item,) = rows(zone, QuarantineItem)
    assert (item.study_id, item.instance_id, item.path) == (None, None, None)
    (job,) = rows(zone, ClinicalJob)
    assert (job.kind, job.state, job.progress) == ("erase", "done", {"files": 3})
    (entry,) = [row for row in rows(zone, ClinicalLedgerEntry) if row.kind == "study.deleted"]
    body = json.loads(entry.body)
    assert entry.subject_id == study_id
    assert (body["instances"], body["results"], body["size_bytes"], body["keep_days"]) == (2, 1, 210, 30)
    assert retention.run(zone, now()) == 0


def test_empty_folders_go_and_others_stay(zone: ClinicalZone) -> None:
    add_study(zone)
    add_rule(zone, 30)
    retention.run(zone, now())
    assert list((zone.root / "instances").iterdir()) == []


def _change(**values: Any) -> Callable[[ClinicalZone, str], None]:
    def change(zone: ClinicalZone, study_id: str) -> None:
        with writing(zone.engine) as session:
            for name, value in values.items():
                setattr(session.get_one(Study, study_id), name, value)

    return change


def _job(state: str) -> Callable[[ClinicalZone, str], None]:
    def add(zone: ClinicalZone, study_id: str) -> None:
        with writing(zone.engine) as session:
            revision = session.scalars(select(StudyRevision).where(StudyRevision.study_id == study_id)).one()
            session.add(ClinicalJob(kind="deidentify", subject_id=revision.id, dedupe_key="d", state=state))

    return add


def _item(zone: ClinicalZone, study_id: str) -> None:
    with writing(zone.engine) as session:
        session.add(
            QuarantineItem(stage="index", reason_code="x", reason="-", study_id=study_id, dedupe_key="i")
        )


KEPT: dict[str, Callable[[ClinicalZone, str], None]] = {
    "on hold": _change(on_hold=True),
    "still receiving": _change(state="receiving"),
    "stopped": _change(state="quarantined"),
    "a queued job": _job("queued"),
    "a dead job": _job("dead"),
    "a failed job": _job("failed"),
    "an open quarantine item": _item,
    "a queued delivery": lambda zone, study_id: add_result(zone, study_id, "queued"),
    "a dead delivery": lambda zone, study_id: add_result(zone, study_id, "dead"),
    "a result without a delivery": lambda zone, study_id: add_result(zone, study_id, None),
    "a withheld current result": lambda zone, study_id: add_result(zone, study_id, "withheld"),
}


@pytest.mark.parametrize("why", KEPT)
def test_what_is_open_undelivered_or_on_hold_is_never_deleted(zone: ClinicalZone, why: str) -> None:
    study_id = add_study(zone)
    KEPT[why](zone, study_id)
    add_rule(zone, 1)
    before = files(zone)
    assert retention.preview(zone, now()).studies == 0
    assert retention.run(zone, now()) == 0
    rule = rows(zone, RetentionRule)[0]
    assert not retention.delete_study(zone, retention.Found(study_id, rule.id, 1), now())
    assert files(zone) == before
    assert len(rows(zone, Study)) == 1


@pytest.mark.parametrize("values", [{"shadow": True}, {"superseded": True}])
def test_results_that_were_never_to_be_delivered_keep_nothing(
    zone: ClinicalZone, values: dict[str, bool]
) -> None:
    study_id = add_study(zone)
    add_result(zone, study_id, "withheld", **values)
    add_rule(zone, 30)
    assert retention.run(zone, now()) == 1


def test_a_discarded_study_goes_in_its_time(zone: ClinicalZone) -> None:
    add_study(zone, state="discarded")
    add_rule(zone, 30)
    assert retention.run(zone, now()) == 1


def test_of_several_rules_the_longest_time_counts(zone: ClinicalZone) -> None:
    add_study(zone, modality="CT")
    mammography = add_study(zone, modality="MG")
    add_rule(zone, 30)
    add_rule(zone, 3650, {"attribute": "Modality", "in": ["MG"]})
    assert retention.run(zone, now()) == 1
    assert [study.id for study in rows(zone, Study)] == [mammography]


def test_a_rule_deletes_only_what_its_condition_names(zone: ClinicalZone) -> None:
    add_study(zone, modality="CT")
    add_rule(zone, 30, {"attribute": "Modality", "in": ["MR"]})
    assert retention.run(zone, now()) == 0


def test_a_rule_that_cannot_be_evaluated_keeps_everything(zone: ClinicalZone) -> None:
    add_study(zone)
    add_rule(zone, 30)
    with writing(zone.engine) as session:
        session.add(RetentionRule(name="broken", condition={"any": []}, keep_days=1))
    assert retention.run(zone, now()) == 0


def test_the_sweep_goes_on_where_it_stopped(zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add_study(zone, days=OLD_DAYS + number, on_hold=number == 3)
    add_rule(zone, 30)
    monkeypatch.setattr(retention, "PAGE", 2)
    sweeper = retention.Sweeper(zone)
    deleted = [sweeper.step(now(), step_s=0) for _ in range(6)]
    assert sum(deleted) == 4
    assert max(deleted) == 1
    assert sweeper.step(now()) == 0, "the next sweep is an hour later"


@pytest.mark.parametrize(
    ("name", "condition", "keep_days", "message"),
    [
        ("", {}, 1, "name"),
        ("a", {}, 1, "another rule"),
        ("b", {"any": []}, 1, "condition.any"),
        ("b", {"not": {"time": {"days": ["sat"]}}}, 1, "condition.time"),
        ("b", {}, 0, "keep_days"),
        ("b", {}, 99999, "keep_days"),
    ],
)
def test_what_is_no_retention_rule_is_refused(
    zone: ClinicalZone, name: str, condition: dict[str, Any], keep_days: int, message: str
) -> None:
    with writing(zone.engine) as session:
        retention_rules.add_rule(session, zone.ledger, "a", {}, 5, actor="u")
        with pytest.raises(RuleError, match=message):
            retention_rules.add_rule(session, zone.ledger, name, condition, keep_days, actor="u")


def test_a_hold_is_recorded_once(zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    for on in (True, True, False, False):
        with writing(zone.engine) as session:
            retention_rules.hold(session, zone.ledger, study_id, on=on, actor="u")
    kinds = [row.kind for row in rows(zone, ClinicalLedgerEntry)]
    assert (kinds.count("study.held"), kinds.count("study.hold_released")) == (1, 1)
    with writing(zone.engine) as session, pytest.raises(RuleError):
        retention_rules.hold(session, zone.ledger, new_id(), on=True, actor="u")


def test_erasing_touches_nothing_but_files_that_no_row_points_to(zone: ClinicalZone) -> None:
    add_study(zone, days=1)
    pointed = sorted(files(zone))
    outside = zone.root / "keys"
    before = sorted(outside.rglob("*"))
    with writing(zone.engine) as session:
        job_id = work.enqueue(session, ClinicalJob, "erase", new_id(), "erase:x")
        session.get_one(ClinicalJob, job_id).progress = {
            "paths": [*pointed, "keys/vault.key", "instances/../keys/vault.key", "/etc/hostname", "instances"]
        }
    with work.claimed(zone.engine, ClinicalJob, str(job_id), "t", 60) as claim:
        assert claim is not None
        erasing.erase(zone, claim)
    assert sorted(files(zone)) == pointed
    assert sorted(outside.rglob("*")) == before
    assert Path("/etc/hostname").exists()


def test_the_look_at_many_studies_takes_no_long(zone: ClinicalZone) -> None:
    with writing(zone.engine) as session:
        for _ in range(2000):
            study = Study(
                study_instance_uid=new_id(),
                state="assembled",
                revision=1,
                last_received_at=now() - timedelta(days=10),
            )
            session.add(study)
            session.flush()
            revision = StudyRevision(study_id=study.id, number=1, instance_count=0)
            session.add(revision)
            session.flush()
            job = ClinicalJob(kind="infer", subject_id=revision.id, dedupe_key=revision.id, state="dead")
            session.add(job)
    add_rule(zone, 1)
    start = time.monotonic()
    assert retention.preview(zone, now()).studies == 0
    assert time.monotonic() - start < 2


@pytest.mark.slow
def test_killed_anywhere_nothing_points_to_nothing_and_the_rest_is_done_again(tmp_path: Path) -> None:
    runner = CliRunner()
    folder = tmp_path / "n"
    assert runner.invoke(cli.build(), ["init", str(folder), "--port", "0", "--web-port", "0"]).exit_code == 0
    config = folder / "cloister.toml"
    zone = open_clinical(load_settings(config))
    kept = add_study(zone, days=1)
    for _ in range(40):
        add_result(zone, add_study(zone), "delivered")
    add_rule(zone, 30)
    chance = random.Random(7)  # noqa: S311 - when to kill
    for _ in range(8):
        _kill_in_the_middle(config, chance.uniform(0.0, 0.25))
        for path in (row.path for model in (Instance, Result) for row in rows(zone, model)):
            assert (zone.root / path).exists(), "a row points to nothing"
    work.reconcile(zone.engine, ClinicalJob, lambda *_: True, now())
    assert runner.invoke(cli.build(), ["retention", "run", "--config", str(config)]).exit_code == 0
    _finish(zone)
    assert [study.id for study in rows(zone, Study)] == [kept]
    assert files(zone) == {row.path for row in rows(zone, Instance)}
    deleted = [row.subject_id for row in rows(zone, ClinicalLedgerEntry) if row.kind == "study.deleted"]
    assert len(deleted) == len(set(deleted)) == 40
    assert runner.invoke(cli.build(), ["ledger", "verify", "--config", str(config)]).exit_code == 0


def _kill_in_the_middle(config: Path, after_s: float) -> None:
    probe = subprocess.Popen(
        [sys.executable, "-m", "tests.appliance.probe_retention", str(config)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert probe.stdout is not None
    assert probe.stdout.readline() == b"ready\n"
    time.sleep(after_s)
    probe.kill()
    probe.communicate()


def _finish(zone: ClinicalZone) -> None:
    """Do the jobs that a worker would do."""
    with reading(zone.engine) as session:
        waiting = session.scalars(select(ClinicalJob.id).where(ClinicalJob.state == "queued")).all()
    for job_id in waiting:
        with work.claimed(zone.engine, ClinicalJob, job_id, "t", 60) as claim:
            assert claim is not None
            erasing.erase(zone, claim)
    with reading(zone.engine) as session:
        assert session.scalar(select(func.count()).where(ClinicalJob.state != "done")) == 0
