"""Sources in the panel and the API: who fell silent, and who has seen it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from appliance import alarms, silence, traffic
from appliance.db.base import now
from appliance.db.clinical import Alarm
from appliance.db.engine import writing
from appliance.db.peers import Traffic
from appliance.traffic import IN, OUT, Flow
from appliance.web.panel import home, shell, sources
from appliance.web.panel.markup import join
from appliance.web.panel.page import Query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.auth import Principal
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer


@pytest.fixture
def silent(desk: Desk) -> Iterator[str]:
    """Give the id of the alarm of a scanner that fell silent; nothing of it stays."""
    at = now()
    with writing(desk.zone.engine) as session:
        flows = [Flow(IN, "PACS", name, instances=3, size_bytes=1 << 20, at=at) for name in ("", "CT <1>")]
        traffic.add(
            session, [*flows, Flow(OUT, "WS2", instances=1, failures=2, at=at), Flow(IN, "", rejected=4)]
        )
        detail = {
            "ae_title": "PACS",
            "station_name": "CT <1>",
            "last_at": (at - timedelta(days=1)).isoformat(),
        }
        alarms.raise_once(session, silence.SILENCE, "PACS\\CT <1>", detail)
        found = alarms.still_open(session)[0].id
    yield found
    with writing(desk.zone.engine) as session:
        session.execute(delete(Alarm))
        session.execute(delete(Traffic))


def test_the_page_draws_alarms_sources_and_the_chosen_one(
    desk: Desk, silent: str, viewer_of: Callable[[str], Principal]
) -> None:
    viewer = viewer_of("ada")
    chosen = Query({"ae_title": "PACS", "station_name": "CT <1>"})
    drawn = str(join(sources.draw(sources.load(desk, viewer, chosen), viewer).values()))
    assert f'data-field-id="{silent}"' in drawn
    assert "CT &lt;1&gt;" in drawn
    assert "CT <1>" not in drawn
    assert "4 calls of unknown callers rejected" in drawn
    assert drawn.count('class="cell') == 168
    viewer = viewer_of("viewer")
    drawn = str(join(sources.draw(sources.load(desk, viewer, Query({})), viewer).values()))
    assert "data-action" not in drawn


def test_an_alarm_is_acknowledged_by_those_who_may_and_leaves_the_first_page(
    desk: Desk, silent: str, panel: PanelServer, viewer_of: Callable[[str], Principal]
) -> None:
    viewer = viewer_of("ada")
    assert "A source fell silent" in str(join(home.draw(home.load(desk, viewer, Query({})), viewer).values()))
    assert shell.load(desk).waiting["/sources"] == (1, "bad")
    act = "/api/v1/sources/actions/acknowledge"
    assert panel.client("viewer").post(act, json={"id": silent}).status_code == 403
    assert panel.client("manage_peers").post(act, json={"id": silent}).status_code == 200
    assert panel.client("manage_peers").post(act, json={"id": silent}).status_code == 409
    assert "fell silent" not in str(join(home.draw(home.load(desk, viewer, Query({})), viewer).values()))
    assert "/sources" not in shell.load(desk).waiting
    view = panel.client("viewer").get("/api/v1/sources", params={"ae_title": "PACS"}).json()
    assert [alarm["acknowledged_by"] for alarm in view["overview"]["alarms"]] == ["manage_peers"]
    assert view["chosen"]["row"]["week"]["instances"] == 3
    assert panel.client("viewer").get("/healthz").json().keys() == {"well", "checks"}
