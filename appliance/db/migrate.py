"""Bring a database to the newest schema.

``python -m appliance.db.migrate WHICH MESSAGE`` drafts a revision.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import Connection, DateTime, MetaData, inspect, text

from appliance.db.engine import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.autogenerate.api import AutogenContext
    from alembic.config import Config

Which = Literal["clinical", "research", "coordinator"]

_BASES: Final[dict[Which, str]] = {
    "clinical": "ClinicalBase",
    "research": "ResearchBase",
    "coordinator": "CoordinatorBase",
}
_BESIDE: Final[dict[Which, tuple[str, ...]]] = {"clinical": ("peers", "people")}
"""Other modules with tables of a database."""
_LOCK: Final = 0x436C6F69  # PostgreSQL advisory lock: one migration at a time


def metadata(which: Which) -> MetaData:
    """Return the tables that the code expects."""
    for name in _BESIDE.get(which, ()):
        import_module(f"appliance.db.{name}")
    base = getattr(import_module(f"appliance.db.{which}"), _BASES[which])
    found: MetaData = base.metadata
    return found


def upgrade(url: str, which: Which) -> None:
    """Bring the database to the newest revision, in one transaction; idempotent."""
    from alembic import command  # noqa: PLC0415 - only those who migrate pay for Alembic

    with _migrating(url) as connection:
        command.upgrade(_config(which, connection), "head")


def current(url: str, which: Which) -> str | None:
    """Return the revision that the database stands at; None for an empty one."""
    del which
    engine = make_engine(url, read_only=True)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found)
    finally:
        engine.dispose()


def head(which: Which) -> str:
    """Return the newest revision of the scripts."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - only those who migrate pay for Alembic

    found = ScriptDirectory.from_config(_config(which)).get_current_head()
    if found is None:
        raise LookupError(f"no migration script for {which}")
    return found


def differences(url: str, which: Which) -> list[Any]:
    """Return what separates the database from the tables in the code; empty when they agree."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - only those who migrate pay for Alembic
    from alembic.migration import MigrationContext  # noqa: PLC0415 - as above

    with _migrating(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata(which)))


def run_environment(which: Which) -> None:
    """Run inside Alembic: called by the ``env.py`` of each database."""
    from alembic import context  # noqa: PLC0415 - only those who migrate pay for Alembic

    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata(which),
        render_item=_render_item,
        transactional_ddl=True,
        compare_type=True,
    )
    context.run_migrations()


def _render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Keep scripts independent of our column types, which may change after them."""
    del context
    if kind == "type" and isinstance(getattr(item, "impl", None), DateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _config(which: Which, connection: Connection | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - only those who migrate pay for Alembic

    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).with_name("migrations") / which).replace("%", "%%")
    )
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _migrating(url: str) -> Iterator[Connection]:
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection
    finally:
        engine.dispose()


def draft(which: Which, message: str, url: str) -> None:
    """Write a new revision script from what differs between ``url`` (at its newest revision) and the code."""
    from alembic import command  # noqa: PLC0415 - only those who migrate pay for Alembic

    upgrade(url, which)
    with _migrating(url) as connection:
        command.revision(_config(which, connection), message=message, autogenerate=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        draft(sys.argv[1], sys.argv[2], f"sqlite:///{folder}/draft.db")  # type: ignore[arg-type]
