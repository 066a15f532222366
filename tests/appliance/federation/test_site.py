from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import func, select

from appliance import ledger, node
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, ProtocolState, Receipt, ResearchLedgerEntry, Round, Subject
from appliance.federation import protocols
from appliance.federation.errors import ReleaseError
from appliance.federation.protocols import ProtocolDecisionError, UnknownProtocolError
from appliance.federation.roundrows import MAX_REVIVALS, REVIVE_AFTER_S, RoundView
from appliance.federation.site import Asked, SiteService
from tests.appliance.federation.research import add_subjects, finish_round
from tests.trainer.federation.plans import make_plan
from trainer.federation import receipt
from trainer.weights_io import from_bytes, to_bytes

if TYPE_CHECKING:
    from appliance.node import ResearchZone
    from trainer.federation.plan import Plan

MODEL = {"weight": np.ones((2, 2), np.float32)}
CONTENT = to_bytes(MODEL)


def approve(zone: ResearchZone, plan: Plan) -> None:
    with writing(zone.engine) as session:
        row = protocols.find(session, plan.sha256)
        protocols.decide(session, zone.ledger, row.id, ProtocolState.APPROVED, "officer")


def asked(plan: Plan, *, number: int = 1, kind: str = "train", content: bytes = CONTENT) -> Asked:
    return Asked(plan.sha256, kind, number, hashlib.sha256(content).hexdigest())


def stored_models(zone: ResearchZone) -> list[str]:
    return [path.stem for path in (zone.root / "federation" / "models").glob("*")]


def begun(service: SiteService, plan: Plan) -> RoundView:
    service.propose(plan.to_json(), plan.sha256)
    approve(service.zone, plan)
    assert service.begin(asked(plan))[0].standing == "wanted"
    service.store_model(asked(plan), [CONTENT])
    decision, view = service.begin(asked(plan))
    assert decision.standing == "admitted"
    assert view is not None
    return view


def worked(service: SiteService, plan: Plan, number: int) -> RoundView:
    """Ask for a round on a model of its own and do its work."""
    content = to_bytes({"weight": np.full((2, 2), number, np.float32)})
    one = asked(plan, number=number, content=content)
    service.store_model(one, [content])
    _, view = service.begin(one)
    assert view is not None
    finish_round(service.zone, view.round_id)
    return view


def count_rounds(zone: ResearchZone) -> int:
    with reading(zone.engine) as session:
        return session.scalar(select(func.count(Round.id))) or 0


def test_a_new_plan_waits_for_a_person(service: SiteService, plan: Plan) -> None:
    assert service.propose(plan.to_json(), plan.sha256).standing == "pending"
    assert service.propose(plan.to_json(), plan.sha256).standing == "pending"

    decision, view = service.begin(asked(plan))

    assert (decision.standing, view) == ("pending", None)
    assert count_rounds(service.zone) == 0


def test_an_approved_plan_gets_one_row_however_often_it_is_asked_for(
    service: SiteService, plan: Plan
) -> None:
    first = begun(service, plan)

    _, second = service.begin(asked(plan))

    assert second is not None
    assert second.round_id == first.round_id
    assert count_rounds(service.zone) == 1


def test_a_round_is_worked_on_for_one_global_model_alone(service: SiteService, plan: Plan) -> None:
    first = begun(service, plan)
    finish_round(service.zone, first.round_id)
    others = [to_bytes({"weight": np.full((2, 2), value, np.float32)}) for value in (2, 3)]

    decisions = []
    for content in (*others, *others):
        with pytest.raises(ReleaseError, match="other_model"):
            service.store_model(asked(plan, content=content), [content])
        decisions.append(service.begin(asked(plan, content=content)))
    _, again = SiteService(service.zone).begin(asked(plan))

    assert {decision.code for decision, _ in decisions} == {"other_model"}
    assert all(view is None for _, view in decisions)
    assert again is not None
    assert (again.round_id, again.state) == (first.round_id, WorkState.DONE)
    assert count_rounds(service.zone) == 1
    with reading(service.zone.engine) as session:
        kinds = list(session.scalars(select(ResearchLedgerEntry.kind)))
    assert kinds.count("round.other_model") == 1


def test_the_same_number_of_another_kind_has_its_own_model(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    content = to_bytes({"weight": np.full((2, 2), 2, np.float32)})
    final = asked(plan, kind="finalize", content=content)
    service.store_model(final, [content])

    decision, _ = service.begin(final)

    assert decision.standing == "admitted"


def test_an_altered_plan_under_the_approved_hash_is_refused(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    altered = make_plan(total_rounds=99)

    decision = service.propose(altered.to_json(), plan.sha256)

    assert (decision.standing, decision.code) == ("refused", "other_plan")


def test_an_altered_plan_under_its_own_hash_waits_for_a_person_of_its_own(
    service: SiteService, plan: Plan
) -> None:
    begun(service, plan)
    altered = make_plan(total_rounds=99)

    assert service.propose(altered.to_json(), altered.sha256).standing == "pending"
    with reading(service.zone.engine) as session:
        assert "another plan" in str(protocols.find(session, altered.sha256).reason)


def test_a_round_of_a_plan_that_was_never_shown_is_refused(service: SiteService, plan: Plan) -> None:
    decision, view = service.begin(asked(plan))

    assert (decision.standing, decision.code, view) == ("refused", "not_approved", None)


def test_a_plan_that_is_none_is_refused(service: SiteService) -> None:
    assert service.propose({"code": "import os"}, "0" * 64).code == "unreadable_plan"


def test_a_small_cohort_is_refused(service: SiteService, zone: ResearchZone) -> None:
    add_subjects(zone, 4)
    plan = make_plan()
    service.propose(plan.to_json(), plan.sha256)
    with writing(zone.engine) as session:
        protocols.decide(session, zone.ledger, plan.sha256, ProtocolState.APPROVED, "officer")

    decision, _ = service.begin(asked(plan))

    assert decision.code == "cohort_too_small"


def test_the_cohort_leaves_out_other_modalities_other_labels_and_people_who_opted_out(
    service: SiteService, zone: ResearchZone
) -> None:
    names = add_subjects(zone, 6)
    add_subjects(zone, 3, modality="MR")
    add_subjects(zone, 3, label="other")
    with writing(zone.engine) as session:
        subject = session.scalars(select(Subject).where(Subject.pseudonym == names[0])).one()
        subject.opted_out = True
    with reading(zone.engine) as session:
        assert protocols.cohort(session, make_plan().task) == 5


def test_the_receipt_says_what_left_and_is_signed_once(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)
    digest = finish_round(service.zone, view.round_id)

    leaving, signed = service.release(view.round_id)
    again, same = service.release(view.round_id)

    assert leaving == again
    assert leaving.path is not None
    content = leaving.path.read_bytes()
    assert (same.body_sha256, same.signature) == (signed.body_sha256, signed.signature)
    receipt.verify(signed, service.zone.keys.signing.public_key())
    assert signed.body["update_sha256"] == digest
    assert signed.body["size_bytes"] == len(content)
    assert signed.body["update_norm"] == 2.0
    [tensor] = signed.body["tensors"]
    assert tensor == {"name": "weight", "shape": [2, 2], "dtype": "float32", "size_bytes": 16, "norm": 2.0}
    assert set(from_bytes(content)) == {"weight"}
    assert signed.body["approved_by"] == "officer"
    assert signed.body["privacy"] is None
    assert (signed.body["samples"], signed.body["site"]) == (12, "north")
    with reading(service.zone.engine) as session:
        assert session.scalar(select(func.count(Receipt.id))) == 1


def test_a_finished_round_is_answered_again_without_work(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)

    _, again = service.begin(asked(plan))

    assert again is not None
    assert (again.round_id, again.state, again.samples) == (view.round_id, WorkState.DONE, 12)


def test_an_unfinished_round_releases_nothing(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)

    with pytest.raises(ReleaseError, match="not done"):
        service.release(view.round_id)
    with pytest.raises(ReleaseError, match="not done"):
        service.release("unknown")


def test_an_update_that_was_changed_on_disk_does_not_leave(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)
    path = service.zone.root / "federation" / "updates" / f"{view.round_id}.safetensors"
    path.write_bytes(path.read_bytes() + b"x")

    with pytest.raises(ReleaseError, match="differs"):
        service.release(view.round_id)


def test_an_update_larger_than_the_plan_allows_does_not_leave(
    service: SiteService, zone: ResearchZone
) -> None:
    add_subjects(zone, 6)
    view = begun(service, make_plan(max_update_norm=1.9))
    finish_round(zone, view.round_id)  # four ones: norm 2

    with pytest.raises(ReleaseError, match="larger"):
        service.release(view.round_id)


def test_an_output_path_outside_the_zone_does_not_leave(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)
    with writing(service.zone.engine) as session:
        row = session.get(Round, view.round_id)
        assert row is not None
        row.output_path = "../clinical/clinical.db"

    with pytest.raises(ReleaseError, match="outside"):
        service.release(view.round_id)


def test_a_round_that_missed_its_deadline_is_worked_on_when_asked_for_again(
    service: SiteService, plan: Plan
) -> None:
    view = begun(service, plan)
    with writing(service.zone.engine) as session:
        row = session.get(Round, view.round_id)
        assert row is not None
        row.state, row.deadline_at, row.attempts = WorkState.DEAD, now() - timedelta(seconds=1), 4

    _, again = service.begin(asked(plan))

    assert again is not None
    assert (again.round_id, again.state) == (view.round_id, WorkState.QUEUED)


def die(zone: ResearchZone, round_id: str, *, ago_s: float) -> None:
    """Let a round's row die as a worker does, some time ago."""
    with writing(zone.engine) as session:
        row = session.get(Round, round_id)
        assert row is not None
        row.state, row.attempts, row.updated_at = (
            WorkState.DEAD,
            row.attempts + 1,
            now() - timedelta(seconds=ago_s),
        )


def test_a_dead_round_is_tried_again_before_its_deadline_after_a_rest_and_not_for_ever(
    service: SiteService, plan: Plan
) -> None:
    view = begun(service, plan)
    die(service.zone, view.round_id, ago_s=0.0)
    _, at_once = service.begin(asked(plan))
    assert at_once is not None
    assert at_once.state == WorkState.DEAD

    states = []
    for _ in range(MAX_REVIVALS + 2):
        die(service.zone, view.round_id, ago_s=REVIVE_AFTER_S + 1)
        _, again = service.begin(asked(plan))
        assert again is not None
        states.append(again.state)

    assert states == [WorkState.QUEUED] * MAX_REVIVALS + [WorkState.DEAD] * 2


def test_a_suspended_plan_admits_no_further_round(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    with writing(service.zone.engine) as session:
        protocols.decide(
            session, service.zone.ledger, plan.sha256[:8], ProtocolState.SUSPENDED, "officer", "vacation"
        )

    decision, view = service.begin(asked(plan, number=2))

    assert (decision.code, view) == ("suspended", None)


def test_decisions_are_in_the_ledger_with_their_actor(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    zone = service.zone

    report = ledger.verify(
        zone.engine, zone.keys.signing.public_key(), node.head_path(zone.settings, "research")
    )

    assert report.ok
    assert report.entries >= 3


def test_an_expired_plan_cannot_be_approved(service: SiteService, zone: ResearchZone) -> None:
    plan = make_plan(expires_at=now() - timedelta(seconds=1))

    assert service.propose(plan.to_json(), plan.sha256).code == "expired"
    with writing(zone.engine) as session, pytest.raises(ProtocolDecisionError):
        protocols.decide(session, zone.ledger, plan.sha256, ProtocolState.APPROVED, "officer")


def test_unknown_protocols_and_states_are_refused(zone: ResearchZone) -> None:
    with writing(zone.engine) as session:
        for name in ("", "abc", "0" * 32, "%" * 12):
            with pytest.raises(UnknownProtocolError):
                protocols.find(session, name)
        with pytest.raises(ProtocolDecisionError):
            protocols.decide(session, zone.ledger, "x", ProtocolState.PENDING, "officer")


def test_a_flood_of_plans_ends_at_a_limit(
    service: SiteService, zone: ResearchZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "MAX_PENDING", 3)
    for number in range(3):
        plan = make_plan(run_id=f"run-{number}")
        service.propose(plan.to_json(), plan.sha256)
    plan = make_plan(run_id="run-9")

    with pytest.raises(ProtocolDecisionError):
        service.propose(plan.to_json(), plan.sha256)
    with reading(zone.engine) as session:
        assert session.scalar(select(func.count(Protocol.id))) == 3
