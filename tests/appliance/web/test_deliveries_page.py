"""Deliveries in the panel and the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.web.panel import deliveries
from appliance.web.panel.markup import join
from appliance.web.panel.page import Query

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.auth import Principal
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer


def test_the_page_shows_destinations_states_and_proofs(
    desk: Desk, viewer_of: Callable[[str], Principal]
) -> None:
    viewer = viewer_of("ada")
    view = deliveries.load(desk, viewer, Query())
    drawn = str(join(deliveries.draw(view, viewer).values()))
    for words in ("committed", "read back", "Next try", "the peer refused the association"):
        assert words in drawn
    assert sum(row.committed for row in view.destinations) == 2
    nothing = deliveries.load(desk, viewer, Query({"destination": "nobody"}))
    assert nothing.rows == ()
    assert "No delivery matches" in str(join(deliveries.draw(nothing, viewer).values()))


def test_staff_with_the_right_retry_and_withhold(panel: PanelServer, desk: Desk) -> None:
    queued = panel.client("viewer").get("/api/v1/deliveries", params={"state": "queued"}).json()["rows"]
    first, second = (row["id"] for row in queued[:2])

    def act(user: str, name: str, row_id: str) -> int:
        path = f"/api/v1/deliveries/actions/{name}"
        fields: dict[str, Any] = {"id": row_id}
        return panel.client(user).post(path, json=fields).status_code

    assert act("viewer", "retry", first) == 403
    assert act("retry_jobs", "retry", first) == 200
    assert act("retry_jobs", "withhold", second) == 200
    assert act("retry_jobs", "withhold", second) == 409
    assert act("retry_jobs", "retry", "0" * 32) == 409
    with reading(desk.zone.engine) as session:
        kinds = session.scalars(select(ClinicalLedgerEntry.kind)).all()
    assert "delivery.retried" in kinds
    assert "result.withheld" in kinds
