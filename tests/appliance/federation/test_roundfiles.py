from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import func, select

from appliance.db.engine import reading
from appliance.db.research import Receipt
from appliance.federation.errors import ReleaseError
from appliance.federation.roundfiles import KEPT_MODELS, KEPT_UPDATES
from appliance.federation.site import Asked, SiteService
from tests.appliance.federation.research import add_subjects, finish_round
from tests.appliance.federation.test_site import (
    CONTENT,
    approve,
    asked,
    begun,
    count_rounds,
    stored_models,
    worked,
)
from tests.trainer.federation.plans import make_plan
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from appliance.node import ResearchZone
    from trainer.federation.plan import Plan


def test_a_model_other_than_announced_is_refused(service: SiteService, plan: Plan) -> None:
    begun(service, plan)

    with pytest.raises(ReleaseError, match="announced"):
        service.store_model(Asked(plan.sha256, "train", 2, "0" * 64), [CONTENT])


def test_what_is_announced_and_no_weights_file_is_refused_and_leaves_nothing(
    service: SiteService, plan: Plan
) -> None:
    begun(service, plan)
    before = stored_models(service.zone)
    for content in (b"", b"\xff" * 64, CONTENT[:-1], CONTENT + b"x"):
        with pytest.raises(ReleaseError, match="cannot be stored"):
            service.store_model(asked(plan, number=2, content=content), [content])

    assert stored_models(service.zone) == before
    assert [path.name for path in (service.zone.root / "federation" / "models").iterdir()] == [
        f"{name}.safetensors" for name in before
    ]


def test_nothing_is_read_of_a_model_that_is_not_wanted(service: SiteService, plan: Plan) -> None:
    untouched = iter([CONTENT])

    with pytest.raises(ReleaseError, match="not_approved"):
        service.store_model(asked(plan), untouched)
    assert list(untouched) == [CONTENT]


def test_a_model_is_stored_for_an_approved_plan_alone(service: SiteService, plan: Plan) -> None:
    with pytest.raises(ReleaseError, match="not_approved"):
        service.store_model(asked(plan), [CONTENT])
    service.propose(plan.to_json(), plan.sha256)
    with pytest.raises(ReleaseError, match="pending"):
        service.store_model(asked(plan), [CONTENT])
    approve(service.zone, plan)
    with pytest.raises(ReleaseError, match="not_in_plan"):
        service.store_model(asked(plan, number=99), [CONTENT])

    assert stored_models(service.zone) == []


def test_a_model_above_the_sites_size_is_not_stored(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    content = to_bytes({"weight": np.zeros(2**18 + 1, np.float32)})
    settings = service.zone.settings
    small = settings.federation.model_copy(update={"max_model_mib": 1})
    zone = replace(service.zone, settings=settings.model_copy(update={"federation": small}))

    with pytest.raises(ReleaseError, match="too large"):
        SiteService(zone).store_model(asked(plan, number=2, content=content), [content])


def test_models_that_no_round_follows_do_not_pile_up(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    for value in range(20):
        content = to_bytes({"weight": np.full((2, 2), value, np.float32)})
        service.store_model(asked(plan, number=2, content=content), [content])

    assert len(stored_models(service.zone)) <= KEPT_MODELS + 1


def test_a_round_on_a_model_that_never_arrived_has_no_row(service: SiteService, plan: Plan) -> None:
    begun(service, plan)

    decision, view = service.begin(Asked(plan.sha256, "train", 2, "1" * 64))

    assert (decision.standing, decision.code, view) == ("wanted", "no_model", None)
    assert count_rounds(service.zone) == 1


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, "", "0" * 63])
def test_a_model_hash_that_is_none_touches_no_file(service: SiteService, plan: Plan, digest: str) -> None:
    begun(service, plan)

    with pytest.raises(ReleaseError):
        service.begin(Asked(plan.sha256, "train", 2, digest))


def test_models_of_rounds_that_are_over_are_removed_at_last(service: SiteService, zone: ResearchZone) -> None:
    add_subjects(zone, 6)
    plan = make_plan(total_rounds=10)
    service.propose(plan.to_json(), plan.sha256)
    approve(zone, plan)
    digests = []
    for number in range(1, 9):
        content = to_bytes({"weight": np.full((2, 2), number, np.float32)})
        one = asked(plan, number=number, content=content)
        digests.append(one.model_sha256)
        service.store_model(one, [content])
        _, view = service.begin(one)
        assert view is not None
        if number != 2:
            finish_round(zone, view.round_id)

    left = {path.stem for path in (zone.root / "federation" / "models").iterdir()}

    assert left == {digests[1], *digests[-4:]}


def test_updates_are_removed_some_rounds_after_their_receipt(
    service: SiteService, zone: ResearchZone
) -> None:
    add_subjects(zone, 6)
    plan = make_plan(total_rounds=20)
    service.propose(plan.to_json(), plan.sha256)
    approve(zone, plan)
    folder = zone.root / "federation" / "updates"
    folder.mkdir(parents=True, exist_ok=True)
    stray, fresh = folder / "stray.safetensors", folder / "fresh.safetensors"
    for path in (stray, fresh):
        path.write_bytes(CONTENT)
    os.utime(stray, (0, 0))
    rounds = []
    for number in range(1, KEPT_UPDATES + 4):
        view = worked(service, plan, number)
        first, again = service.release(view.round_id), service.release(view.round_id)
        assert first == again
        rounds.append(view.round_id)

    left = {path.stem for path in folder.iterdir()}

    assert left == {*rounds[-KEPT_UPDATES:], "fresh"}
    with pytest.raises(ReleaseError, match="no update"):
        service.release(rounds[0])
    with reading(zone.engine) as session:
        assert session.scalar(select(func.count(Receipt.id))) == len(rounds)


def test_an_update_without_a_receipt_stays(service: SiteService, zone: ResearchZone) -> None:
    add_subjects(zone, 6)
    plan = make_plan(total_rounds=20)
    service.propose(plan.to_json(), plan.sha256)
    approve(zone, plan)
    rounds = [worked(service, plan, number).round_id for number in range(1, KEPT_UPDATES + 4)]

    for round_id in rounds:
        service.release(round_id)

    assert len(list((zone.root / "federation" / "updates").iterdir())) == KEPT_UPDATES
