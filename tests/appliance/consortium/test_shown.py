from __future__ import annotations

import json
from typing import TYPE_CHECKING

from appliance import node
from appliance.auth.sessions import Principal
from appliance.consortium import shown
from appliance.consortium.chain import TRAIN
from appliance.consortium.replica import Replica
from appliance.db.base import now
from appliance.db.engine import reading
from appliance.federation import views
from appliance.web.panel.consortium import ConsortiumPage, draw
from tests.appliance.consortium.scene import PLAN, begin, digest

VIEWER = Principal("user-7", "ada", frozenset(), now())

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.settings import Settings


def test_people_see_who_contributed_to_which_model_and_what_was_found(
    make_node: Callable[..., Settings], tmp_path: Path
) -> None:
    zone = node.open_research(make_node(federation={"site": "observer"}))
    scene = begin(tmp_path / "coordinator")
    scene.work(2)
    Replica(zone).receive(scene.offer())
    Replica(zone).hold(PLAN, TRAIN, 3, digest("another model"))
    with reading(zone.engine) as session:
        told = shown.history(session)
    zone.engine.dispose()

    again = views.decode(views.ConsortiumView, json.loads(json.dumps(views.encode(told))))

    assert again == told
    newest = told.blocks[0]
    assert (newest.kind, newest.round, newest.model_sha256) == ("round", 2, digest("model 2"))
    assert [(one.site, one.samples, one.dataset_sha256) for one in newest.contributions] == [
        (site, 10, digest(f"data {site}")) for site in ("north", "south", "west")
    ]
    assert told.blocks[1].countersigned_by == ("north", "south", "west")
    [found] = told.findings
    assert (found.code, found.resolved_at) == ("model", None)
    drawn = draw(ConsortiumPage(told, can_resolve=True), VIEWER)
    assert "north: 10 samples" in str(drawn["list"])
    assert "No round runs here" in str(drawn["state"])
    assert "Resolve" in str(drawn["findings"])
    assert "Resolve" not in str(draw(ConsortiumPage(told, can_resolve=False), VIEWER)["findings"])
