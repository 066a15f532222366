from __future__ import annotations

import pytest
from sqlalchemy import text

from appliance.db import migrate
from appliance.db.clinical import Rule
from appliance.db.engine import make_engine, writing

ALL: tuple[migrate.Which, ...] = ("clinical", "research", "coordinator")


@pytest.mark.parametrize("which", ALL)
def test_migrations_make_exactly_the_tables_of_the_code(empty_url: str, which: migrate.Which) -> None:
    migrate.upgrade(empty_url, which)
    assert migrate.differences(empty_url, which) == []
    assert migrate.current(empty_url, which) == migrate.head(which)


def test_upgrading_twice_changes_nothing(empty_url: str) -> None:
    migrate.upgrade(empty_url, "clinical")
    engine = make_engine(empty_url)
    with writing(engine) as session:
        session.add(Rule(name="kept"))
    migrate.upgrade(empty_url, "clinical")
    with writing(engine) as session:
        assert session.execute(text("SELECT name FROM rule")).scalar() == "kept"
    engine.dispose()


def test_an_empty_database_has_no_revision(empty_url: str) -> None:
    assert migrate.current(empty_url, "clinical") is None


def test_a_missing_column_is_seen(empty_url: str) -> None:
    migrate.upgrade(empty_url, "research")
    engine = make_engine(empty_url)
    with writing(engine) as session:
        session.execute(text("ALTER TABLE label DROP COLUMN value"))
    engine.dispose()
    assert migrate.differences(empty_url, "research") != []
