from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import figures
from appliance.db.engine import reading
from appliance.db.peers import Traffic
from tests.appliance.delivery_scene import running_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone
    from tests.appliance.delivery_scene import Scene


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


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
