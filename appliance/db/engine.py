"""Engines and transactions: one way to read, one way to write, for SQLite and PostgreSQL."""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT_S: Final = 5  # a server that answers nothing must not look like a process that hangs
BUSY_TIMEOUT_MS: Final = 30_000
KEEPALIVE_S: Final = 10  # who waits for an answer sends nothing else that could go unacknowledged
_MODE: Final = "cloister_mode"
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def make_engine(url: str, *, read_only: bool = False) -> Engine:
    """Make an engine; nothing connects before its first use.

    SQLite runs in WAL mode with foreign keys and ``synchronous=FULL``. Both wait thirty seconds for a lock
    that another holds, and for a network that no longer answers, and fail then. An engine that a process
    inherits through ``fork`` forgets its connections there and opens its own.

    Parameters
    ----------
    url : str
        SQLAlchemy URL; ``postgresql://`` means the psycopg driver.
    read_only : bool
        Refuse every change on all connections of this engine.
    """
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(
            parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(
            parsed,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "tcp_user_timeout": BUSY_TIMEOUT_MS,
                "keepalives_idle": KEEPALIVE_S,
                "keepalives_interval": KEEPALIVE_S,
            },
            pool_pre_ping=True,
            pool_size=2,
            max_overflow=8,
        )
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
    if read_only:
        engine = engine.execution_options(**{_MODE: "locked"})
    _ENGINES.add(engine)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Set up one SQLite connection; transactions are begun by us, not by the driver."""
    del record
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Begin at once with the write lock, or as a reader who cannot write.

    A reader that turned into a writer half-way would fail with "database is locked" whatever the time-out.
    """
    writing = connection.get_execution_options().get(_MODE, "write") == "write"
    connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if writing else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _prepare_postgresql(connection: Any, record: Any) -> None:
    """Wait for another's lock as long as SQLite does, instead of for ever."""
    del record
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {BUSY_TIMEOUT_MS}")
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_MODE, "write") != "write":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Give a session that sees one moment of the database and cannot change it."""
    if engine.get_execution_options().get(_MODE) != "locked":
        engine = engine.execution_options(**{_MODE: "read"})
    with Session(engine, expire_on_commit=False, autoflush=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Give a session in a writing transaction: committed at the end, rolled back by an exception."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.connection()  # take SQLite's write lock now, not at the first statement that needs it
        yield session


def _forget_connections_after_fork() -> None:
    for engine in list(_ENGINES):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections_after_fork)
