"""Logs as JSON lines on standard error, without patient data by construction.

Our own events are constants with row ids, counts and codes as fields. Of other libraries' records only those
of a few named libraries keep their text, since the text of the others may hold DICOM values; of the rest
stays who spoke and where. Exceptions are logged as class and frames, never with their message, unless the
error class is our own (whose messages never carry a value).
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from types import TracebackType

    from appliance.settings import LoggingSettings

OWN_PACKAGES: Final = ("appliance", "dicom_node", "anonymizer", "inference", "trainer")
_TEXT_ALLOWED: Final = (  # neither task errors (celery.app) nor warnings, which quote values
    "celery.worker.consumer",
    "celery.worker.strategy",
    "celery.apps",
    "kombu",
    "redis",
    "alembic",
    "uvicorn.error",
)
_LIBRARY: Final = "library.record"
_UNCAUGHT: Final = "process.failed"
_MAX_TEXT: Final = 500
_process: Final = ["cloister"]


def setup(settings: LoggingSettings, process: str) -> None:
    """Configure structlog and the standard library's logging for this process."""
    _process[0] = process
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if settings.format == "plain":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _name_process,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        safe_exception,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *chain,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=_WithoutTraceback,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_withhold_text, *chain],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = _StandardError()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    for noisy in ("alembic", "pynetdicom", "httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _StandardError(logging.Handler):
    """Writes to what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


class _WithoutTraceback(structlog.stdlib.BoundLogger):
    """Hands exceptions to the standard library as plain errors, since it would add their text by itself."""

    def exception(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log an error with what is being handled just now."""
        fields.setdefault("exc_info", True)
        return self.error(event, *args, **fields)


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: ``log.info(EVENT, study_id=row_id)``."""
    if not structlog.is_configured():  # structlog's own default prints exceptions with their values
        structlog.configure(
            processors=[safe_exception, structlog.processors.JSONRenderer()],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=_WithoutTraceback,
        )
    found: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return found


def safe_reason(error: BaseException) -> str:
    """Say what went wrong without a value: the message of our own errors, else the class."""
    name = type(error).__name__
    if type(error).__module__.partition(".")[0] in OWN_PACKAGES:
        return f"{name}: {error}"[:_MAX_TEXT]
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}"
    return name


def safe_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace exception information by class, safe reason and frames."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        event["error"] = safe_reason(error)
        event["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
    return event


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what would end the process, without its message: a traceback would show values."""
    if issubclass(kind, KeyboardInterrupt):
        return
    logger(__name__).critical(_UNCAUGHT, exc_info=error.with_traceback(trace))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        _log_uncaught(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)


def _name_process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["process"] = _process[0]  # looked up late: loggers made before a fork speak for the new process
    return event


def _withhold_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep a library's text only where it cannot hold a patient's value."""
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    event["where"] = f"{record.filename}:{record.lineno}"
    package = record.name.partition(".")[0]
    if package in OWN_PACKAGES or record.name.startswith(_TEXT_ALLOWED):
        event["text"] = str(event["event"])[:_MAX_TEXT]
    event["event"] = _LIBRARY
    return event
