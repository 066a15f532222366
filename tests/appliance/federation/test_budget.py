from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import delete, select

from appliance import ledger, node
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import PrivacySpending, Receipt, ResearchLedgerEntry, Round
from appliance.federation import budget, receipts
from appliance.federation.budget import BudgetError
from appliance.federation.errors import ReleaseError
from appliance.federation.site import SiteService
from tests.appliance.federation.research import add_subjects, finish_round
from tests.appliance.federation.test_site import approve, asked, begun
from tests.trainer.federation.plans import make_plan
from trainer.privacy.promise import Promise
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.federation.roundrows import RoundView
    from appliance.node import ResearchZone
    from appliance.settings import Settings
    from trainer.federation.plan import Plan

PROMISE = Promise("update-gaussian", clip_norm=1.0, noise_multiplier=8.0, epsilon=10.0, delta=1e-5)


@pytest.fixture
def promised(plan: Plan) -> Plan:
    return replace(plan, privacy=PROMISE, total_rounds=3)


def allow(zone: ResearchZone, epsilon: float) -> None:
    with writing(zone.engine) as session:
        budget.set_budget(session, zone.ledger, epsilon, 1e-5, "cli:officer")


def one_round() -> float:
    return PROMISE.run_epsilon(make_plan().task, 1)


def spent(zone: ResearchZone) -> float:
    with reading(zone.engine) as session:
        found = budget.current(session)
    assert found is not None
    return found.spent


def charges(zone: ResearchZone) -> int:
    with reading(zone.engine) as session:
        return len(session.scalars(select(PrivacySpending)).all())


def finished(zone: ResearchZone, view: RoundView, source: str = "secure") -> None:
    finish_round(zone, view.round_id)
    with writing(zone.engine) as session:
        row = session.get_one(Round, view.round_id)
        row.noise_source = source


def second(service: SiteService, plan: Plan) -> Any:
    content = to_bytes({"weight": np.full((2, 2), 7, np.float32)})
    question = asked(plan, number=2, content=content)
    if service.begin(question)[0].standing == "wanted":
        service.store_model(question, [content])
    return service.begin(question)


def refusals(zone: ResearchZone) -> set[str]:
    with reading(zone.engine) as session:
        rows = session.scalars(select(ResearchLedgerEntry).where(ResearchLedgerEntry.kind == "order.refused"))
        return {json.loads(row.body)["code"] for row in rows}


def test_a_round_is_charged_before_it_trains_and_once_however_often_it_is_asked_for(
    service: SiteService, promised: Plan
) -> None:
    allow(service.zone, 5.0)

    view = begun(service, promised)

    with reading(service.zone.engine) as session:
        assert session.get_one(Round, view.round_id).state == WorkState.QUEUED
    assert spent(service.zone) == pytest.approx(one_round())
    assert service.begin(asked(promised))[0].standing == "admitted"
    finished(service.zone, view)
    assert service.begin(asked(promised))[0].standing == "admitted"
    service.release(view.round_id)
    assert charges(service.zone) == 1


def test_the_round_that_would_overdraw_the_budget_is_refused_and_recorded(
    service: SiteService, promised: Plan
) -> None:
    allow(service.zone, one_round() * 1.01)
    begun(service, promised)

    decision, view = second(service, promised)

    assert (decision.code, view) == ("budget_spent", None)
    assert "budget_spent" in refusals(service.zone)
    assert charges(service.zone) == 1
    assert service.begin(asked(promised))[0].standing == "admitted"  # what was charged goes on
    allow(service.zone, 5.0)
    assert second(service, promised)[0].standing == "admitted"
    assert charges(service.zone) == 2


def test_what_another_run_spent_counts(service: SiteService, promised: Plan) -> None:
    allow(service.zone, one_round() * 1.01)
    begun(service, promised)

    other = replace(promised, run_id="run-of-another-federation")
    service.propose(other.to_json(), other.sha256)
    approve(service.zone, other)

    assert service.propose(other.to_json(), other.sha256).code == "budget_spent"


def test_a_round_that_starts_anew_is_charged_anew_or_refused(service: SiteService, promised: Plan) -> None:
    allow(service.zone, 5.0)
    view = begun(service, promised)

    def die() -> None:
        with writing(service.zone.engine) as session:
            row = session.get_one(Round, view.round_id)
            row.state, row.deadline_at = WorkState.DEAD, now() - timedelta(seconds=1)

    die()
    assert service.begin(asked(promised))[0].standing == "admitted"
    assert charges(service.zone) == 2
    die()
    allow(service.zone, one_round())
    assert service.begin(asked(promised))[0].code == "budget_spent"
    assert charges(service.zone) == 2


def test_a_budget_refuses_what_is_not_protected_and_no_budget_what_is(
    service: SiteService, plan: Plan, promised: Plan
) -> None:
    service.propose(promised.to_json(), promised.sha256)
    approve(service.zone, promised)
    assert service.begin(asked(promised))[0].code == "no_budget"
    bare = replace(plan, run_id="run-2")
    service.propose(bare.to_json(), bare.sha256)
    approve(service.zone, bare)
    assert service.propose(bare.to_json(), bare.sha256).standing == "admitted"

    allow(service.zone, 5.0)

    assert service.propose(bare.to_json(), bare.sha256).code == "privacy_required"


def test_a_site_may_demand_privacy_without_a_budget(make_node: Callable[..., Settings], plan: Plan) -> None:
    settings = make_node(name="strict", federation={"minimum_cohort": 1, "require_privacy": True})
    zone = node.open_research(settings)
    add_subjects(zone, 6)
    service = SiteService(zone)
    service.propose(plan.to_json(), plan.sha256)
    approve(zone, plan)

    assert service.propose(plan.to_json(), plan.sha256).code == "privacy_required"
    zone.engine.dispose()


def test_an_update_whose_cost_is_not_booked_or_whose_noise_is_not_secure_stays(
    service: SiteService, promised: Plan
) -> None:
    allow(service.zone, 5.0)
    view = begun(service, promised)
    finished(service.zone, view, "seeded")
    with pytest.raises(ReleaseError, match="secure"):
        service.release(view.round_id)
    finished(service.zone, view)
    with writing(service.zone.engine) as session:
        session.execute(delete(PrivacySpending))
    with pytest.raises(ReleaseError, match="booked"):
        service.release(view.round_id)


def test_the_receipt_tells_what_the_round_cost_in_words_and_is_checked(
    service: SiteService, promised: Plan
) -> None:
    allow(service.zone, 5.0)
    view = begun(service, promised)
    finished(service.zone, view)

    _, signed = service.release(view.round_id)

    cost = signed.body["privacy"]
    assert cost["epsilon"] == pytest.approx(one_round())
    assert cost["epsilon_total"] + cost["epsilon_left"] == pytest.approx(5.0)
    assert (cost["mechanism"], cost["noise_source"], cost["delta"]) == ("update-gaussian", "secure", 1e-5)
    key = service.zone.keys.signing.public_key()
    with writing(service.zone.engine) as session:
        told = "\n".join(receipts.lines(receipts.find(session, view.round_id).body))
        assert "weight: float32, 2 x 2, 16 bytes, norm 2" in told
        assert "approved by officer" in told
        assert f"{one_round():.4g} for this round" in told
        assert [one.problem for one in receipts.verify(session, key)] == [""]
        row = session.scalars(select(Receipt)).one()
        row.body = {**row.body, "samples": 1}
        assert "hash" in receipts.verify(session, key)[0].problem
        session.delete(row)
        session.flush()
        assert "gone" in receipts.verify(session, key)[0].problem


@pytest.mark.parametrize(("epsilon", "delta"), [(-1.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.5), (1.0, 0.0)])
def test_a_budget_out_of_range_is_refused(zone: ResearchZone, epsilon: float, delta: float) -> None:
    with writing(zone.engine) as session, pytest.raises(BudgetError, match="expected"):
        budget.set_budget(session, zone.ledger, epsilon, delta, "cli:officer")


def test_setting_and_charging_are_in_the_ledger(service: SiteService, promised: Plan) -> None:
    allow(service.zone, 5.0)
    begun(service, promised)

    with reading(service.zone.engine) as session:
        rows = session.scalars(select(ResearchLedgerEntry).order_by(ResearchLedgerEntry.sequence)).all()
    bodies = {row.kind: json.loads(row.body) for row in rows}
    assert bodies[budget.BUDGET_SET] == {"epsilon": 5.0, "delta": 1e-5}
    assert bodies[budget.CHARGED]["epsilon_total"] == pytest.approx(one_round())
    key = service.zone.keys.signing.public_key()
    assert ledger.verify(service.zone.engine, key, node.head_path(service.zone.settings, "research")).ok
