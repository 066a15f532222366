"""Databases of both kinds, for suites that must hold on each."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.db import migrate
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import make_engine
from appliance.ledger import Ledger
from tests.appliance.dimse_node import Node, running_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.node import ClinicalZone
    from tests.appliance.servers import PostgreSQL


BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture(scope="session")
def sqlite_templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of migrated SQLite files, to be copied."""
    folder = tmp_path_factory.mktemp("templates")
    for which in ("clinical", "research"):
        migrate.upgrade(f"sqlite:///{folder / which}.db", which)
    return folder


@pytest.fixture(scope="session")
def postgresql_templates(postgresql: PostgreSQL) -> PostgreSQL:
    """Server with migrated databases, to be copied."""
    for which in ("clinical", "research"):
        migrate.upgrade(postgresql.new_database(f"template_{which}"), which)
    return postgresql


def _migrated_url(which: str, request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        path = request.getfixturevalue("tmp_path") / f"{which}.db"
        shutil.copy(request.getfixturevalue("sqlite_templates") / f"{which}.db", path)
        return f"sqlite:///{path}"
    server: PostgreSQL = request.getfixturevalue("postgresql_templates")
    return server.new_database(template=f"template_{which}")


@pytest.fixture(params=BOTH)
def clinical_url(request: pytest.FixtureRequest) -> str:
    """URL of a migrated clinical database of each kind."""
    return _migrated_url("clinical", request)


@pytest.fixture(params=BOTH)
def research_url(request: pytest.FixtureRequest) -> str:
    """URL of a migrated research database of each kind."""
    return _migrated_url("research", request)


@pytest.fixture
def clinical_engine(clinical_url: str) -> Iterator[Engine]:
    """Engine on a migrated clinical database of each kind."""
    engine = make_engine(clinical_url)
    yield engine
    engine.dispose()


@pytest.fixture
def research_engine(research_url: str) -> Iterator[Engine]:
    """Engine on a migrated research database of each kind."""
    engine = make_engine(research_url)
    yield engine
    engine.dispose()


@pytest.fixture
def signing_key() -> Ed25519PrivateKey:
    """Return a fresh signing key."""
    return Ed25519PrivateKey.generate()


@pytest.fixture
def ledger(signing_key: Ed25519PrivateKey, tmp_path: Path) -> Ledger:
    """Appender on the clinical table."""
    return Ledger(ClinicalLedgerEntry, signing_key, b"s" * 32, tmp_path / "ledger.head")


@pytest.fixture
def running(clinical_zone: ClinicalZone) -> Iterator[Node]:
    """Give a node's SCP with all its services: a workstation may query, a scanner may send."""
    with running_node(clinical_zone) as started:
        yield started
