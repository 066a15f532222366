"""The run controller's line to the engine's server: submit, ask, abort. Any failure means "not now"."""

from __future__ import annotations

import contextlib
import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from appliance.federation import policy
from appliance.federation.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")
CONNECT_TIMEOUT_S: Final = 5.0
_ENDED: Final = "FINISHED"


class EngineAwayError(FederationError):
    """The engine's server cannot be asked now."""


class _Edge(AbstractContextManager[None]):
    """Whatever the engine's client raises becomes :class:`EngineAwayError`; its classes share no base."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate."""
        if isinstance(error, Exception) and not isinstance(error, FederationError):
            raise EngineAwayError(f"the engine's server does not answer ({type(error).__name__})") from error


class EngineLink:
    """A session as the federation's administrator, opened at need and again after a failure."""

    def __init__(self, admin_workspace: Path) -> None:
        self._workspace = admin_workspace
        self._session: Any = None

    def sites(self) -> frozenset[str]:
        """Return the names of the sites that are connected; raises EngineAwayError."""
        info = self._do(lambda session: session.get_system_info())
        return frozenset(str(client.name) for client in info.client_info)

    def submit(self, job: Path) -> str:
        """Submit a job folder and return the job's id; raises EngineAwayError."""
        return str(self._do(lambda session: session.submit_job(str(job))))

    def status(self, job_id: str) -> str:
        """Return a job's status in the engine's words; raises EngineAwayError."""
        return str(self._do(lambda session: _meta(session, job_id)).get("status", ""))

    def abort(self, job_id: str) -> None:
        """Ask the engine to end a job; raises EngineAwayError."""
        self._do(lambda session: session.abort_job(job_id))

    def close(self) -> None:
        """Close the session; without it the engine's threads keep the process alive."""
        session, self._session = self._session, None
        if session is not None:
            session._close_ignore_errors()  # noqa: SLF001 - the public close raises when the server is gone

    def _do(self, ask: Callable[[Any], T]) -> T:
        try:
            with _Edge():
                return ask(self._opened())
        except EngineAwayError:
            self.close()
            raise
        raise AssertionError  # the block above returns or raises

    def _opened(self) -> Any:
        if self._session is None:
            from nvflare.fuel.flare_api.flare_api import new_secure_session  # noqa: PLC0415 - heavy

            with contextlib.redirect_stdout(io.StringIO()):  # it prints what only its own console wants
                self._session = new_secure_session(
                    policy.ADMIN, str(self._workspace), timeout=CONNECT_TIMEOUT_S, auto_login_max_tries=1
                )
        return self._session


def _meta(session: Any, job_id: str) -> dict[str, Any]:
    from nvflare.fuel.flare_api.api_spec import JobNotFound  # noqa: PLC0415 - heavy

    try:
        return dict(session.get_job_meta(job_id))
    except JobNotFound:
        return {"status": f"{_ENDED}:UNKNOWN"}


def has_ended(status: str) -> bool:
    """Whether the engine has finished with a job, in whatever way."""
    return status.startswith(_ENDED)
