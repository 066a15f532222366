from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance.db import migrate
from appliance.db.engine import make_engine
from appliance.federation.book import Book

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    migrate.upgrade(url, "coordinator")
    opened = Book(make_engine(url), tmp_path)
    yield opened
    opened.engine.dispose()
