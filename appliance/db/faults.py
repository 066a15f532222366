"""Which errors of a database may pass by themselves, and how they are named without a value of a row."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

# Locked, full, read-only (PostgreSQL's stand-by: InternalError), server or connection gone, pool exhausted.
PASSING: Final = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)


def name_of(error: SQLAlchemyError) -> str:
    """Return an error's class and the database's own code: ``OperationalError SQLITE_FULL``."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
    return " ".join(filter(None, (type(error).__name__, code)))
