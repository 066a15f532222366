"""The global model comes to a site as a packed step: it is followed, or refused in a sentence."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.federation.book import Checkpoint as Standing
from appliance.federation.errors import ReleaseError
from appliance.federation.wayback import WayBack
from tests.appliance.federation.test_site import CONTENT, MODEL, asked, begun, stored_models
from tests.trainer.federation.plans import make_plan
from trainer.compression import Compression, steps
from trainer.federation.aggregation import Aggregate
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from appliance.federation.site import SiteService
    from trainer.federation.plan import Plan

BASE = hashlib.sha256(CONTENT).hexdigest()
INT8 = Compression("int8", both_ways=True)


@pytest.fixture
def both_ways(plan: Plan) -> Plan:
    return replace(plan, compression=INT8)


def step(plan: Plan, number: int = 1) -> steps.Step:
    """Take the step of a finished round, from ones to other numbers."""
    after = {"weight": MODEL["weight"] * np.float32(1.3)}
    return steps.take(INT8, steps.drawn(plan.seed, number), MODEL, after, {})


def test_a_site_makes_the_next_model_of_the_one_that_it_has(service: SiteService, both_ways: Plan) -> None:
    begun(service, both_ways)
    taken = step(both_ways)
    question = asked(both_ways, number=2, content=to_bytes(taken.weights))

    service.store_model(question, [to_bytes(taken.arrays)], BASE)

    assert set(stored_models(service.zone)) == {BASE, question.model_sha256}
    assert service.begin(question)[0].standing == "admitted"


def test_a_step_to_another_model_than_announced_is_not_followed(
    service: SiteService, both_ways: Plan
) -> None:
    begun(service, both_ways)
    question = asked(both_ways, number=2, content=to_bytes({"weight": MODEL["weight"] * 2}))

    with pytest.raises(ReleaseError, match="announced"):
        service.store_model(question, [to_bytes(step(both_ways).arrays)], BASE)

    assert stored_models(service.zone) == [BASE]


@pytest.mark.parametrize(
    ("content", "base", "reason"),
    [
        (None, "0" * 64, "not here"),
        (None, "../../etc", "SHA-256"),
        (b"", BASE, "cannot be followed"),
        (to_bytes({"weight": np.ones((2, 2), np.int8)}), BASE, "cannot be followed"),
        (CONTENT, BASE, "cannot be followed"),
    ],
)
def test_what_is_no_step_from_a_model_here_is_refused(
    service: SiteService, both_ways: Plan, content: bytes | None, base: str, reason: str
) -> None:
    begun(service, both_ways)
    taken = step(both_ways)
    question = asked(both_ways, number=2, content=to_bytes(taken.weights))

    with pytest.raises(ReleaseError, match=reason):
        service.store_model(question, [to_bytes(taken.arrays) if content is None else content], base)


def test_a_plan_without_steps_gets_none(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    taken = step(plan)

    question = asked(plan, number=2, content=to_bytes(taken.weights))
    with pytest.raises(ReleaseError, match="no such thing"):
        service.store_model(question, [to_bytes(taken.arrays)], BASE)


def test_only_sites_that_were_there_get_a_step_and_the_others_the_model() -> None:
    plan = make_plan(compression=INT8)
    way = WayBack(plan)
    standing = Standing(1, MODEL, {}, BASE)
    after = {"weight": MODEL["weight"] * np.float32(1.3)}

    reached = way.taken(2, standing, Aggregate(after, {"first:weight": after["weight"]}, ()))
    finished = replace(reached, model_sha256=hashlib.sha256(to_bytes(reached.weights)).hexdigest())
    before = way.data(finished, 3, ["north", "south"])
    way.reached(standing, finished, ["north"])
    sent = way.data(finished, 3, ["north", "south", "west"])

    assert before["north"] is before["south"]
    assert sent["south"] is sent["west"]
    assert sent["north"]["cloister_base"] == BASE
    assert "cloister_base" not in sent["south"]
    assert set(way.plain(finished).state) == {"first:weight"}
    assert set(finished.state) == {"first:weight", "left;weight"}
