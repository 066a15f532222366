from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance import node
from appliance.db import migrate
from appliance.db.engine import make_engine
from appliance.federation.book import Book
from appliance.federation.site import SiteService
from tests.appliance.federation.research import add_subjects
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.node import ResearchZone
    from appliance.settings import Settings
    from trainer.federation.plan import Plan


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    migrate.upgrade(url, "coordinator")
    opened = Book(make_engine(url), tmp_path)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def zone(make_node: Callable[..., Settings]) -> Iterator[ResearchZone]:
    opened = node.open_research(make_node(federation={"site": "north", "minimum_cohort": 3}))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def service(zone: ResearchZone) -> SiteService:
    return SiteService(zone)


@pytest.fixture
def plan(zone: ResearchZone) -> Plan:
    add_subjects(zone, 6)
    return make_plan()
