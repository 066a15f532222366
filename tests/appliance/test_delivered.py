from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance import figures
from appliance.db.clinical import Traffic
from appliance.db.engine import reading
from tests.appliance.test_delivery import scene

if TYPE_CHECKING:
    from pathlib import Path

    from tests.appliance.test_delivery import Scene

__all__ = ["scene"]  # a fixture


def test_a_delivery_counts_once_as_sent_and_as_long_as_it_took(scene: Scene, tmp_path: Path) -> None:
    figures._BOOK.forget()
    scene.deliver()
    scene.deliver()
    with reading(scene.zone.engine) as session:
        (sent,) = session.scalars(select(Traffic).where(Traffic.direction == "out"))
    assert (sent.ae_title, sent.associations, sent.instances) == ("CLOISTER", 1, 1)
    figures.flush(tmp_path)
    counted = figures.collected(tmp_path)["cloister_delivery_seconds", ("ws",)]
    assert sum(counted[:-1]) == 1
