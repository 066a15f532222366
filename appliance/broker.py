"""Wake-up calls: Celery messages that carry one row id, sent without ever failing the caller."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance import logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

CLINICAL_QUEUE: Final = "clinical"
INFERENCE_QUEUE: Final = "clinical.inference"
FETCH_QUEUE: Final = "clinical.fetch"
RESEARCH_QUEUE: Final = "research"

DEIDENTIFY_STUDY: Final = "clinical.deidentify_study"
DELIVER_RESULT: Final = "clinical.deliver_result"
ERASE_FILES: Final = "clinical.erase_files"
FETCH_STUDIES: Final = "clinical.fetch_studies"
INFER_STUDY: Final = "clinical.infer_study"
REPORT_COMMITMENT: Final = "clinical.report_commitment"
REVIEW_INSTANCE: Final = "clinical.review_instance"
RUN_LOCAL_ROUND: Final = "research.run_local_round"
RUN_PREFLIGHT: Final = "research.run_preflight"

# Job kind -> (Celery task, queue).
CLINICAL_KINDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "deidentify": (DEIDENTIFY_STUDY, CLINICAL_QUEUE),
        "deliver": (DELIVER_RESULT, CLINICAL_QUEUE),
        "erase": (ERASE_FILES, CLINICAL_QUEUE),
        "fetch": (FETCH_STUDIES, FETCH_QUEUE),
        "infer": (INFER_STUDY, INFERENCE_QUEUE),
        "report": (REPORT_COMMITMENT, CLINICAL_QUEUE),
        "review": (REVIEW_INSTANCE, CLINICAL_QUEUE),
    }
)

# Job kind -> Celery task; all of the research zone's work waits in one queue.
RESEARCH_KINDS: Final[Mapping[str, str]] = MappingProxyType({"preflight": RUN_PREFLIGHT})

WAKE_FAILED: Final = "wake.failed"
WAKE_UNKNOWN: Final = "wake.unknown_kind"
CONNECT_TIMEOUT_S: Final = 2.0

_LOG = logs.logger(__name__)


def connect(url: str) -> Redis:
    """Return a Redis client for a broker URL (``redis://``, ``rediss://``, ``redis+socket://PATH``)."""
    from redis import Redis  # noqa: PLC0415 - only those who ask the broker pay for it
    from redis.backoff import NoBackoff  # noqa: PLC0415 - as above
    from redis.retry import Retry  # noqa: PLC0415 - as above

    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": CONNECT_TIMEOUT_S,
    }
    if url.startswith("redis+socket://"):
        return Redis(unix_socket_path=url.removeprefix("redis+socket://"), **options)
    return Redis.from_url(url, **options)


def send(url: str, task: str, queue: str, row_id: str) -> bool:
    """Send one wake-up call; return False when the broker is away, and leave it to the reconciler."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - Celery loads at the first call
    from redis.exceptions import RedisError  # noqa: PLC0415 - as above

    from appliance.worker import sender  # noqa: PLC0415 - as above

    try:
        sender(url).send_task(task, args=[row_id], queue=queue, ignore_result=True, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        _LOG.warning(WAKE_FAILED, task=task, row_id=row_id, error_class=type(error).__name__)
        return False
    return True


@dataclass(frozen=True)
class ClinicalWaker:
    """``wake(kind, job_id)`` of the clinical zone."""

    url: str

    def __call__(self, kind: str, job_id: str) -> bool:
        """Wake the worker of this kind of job; return whether the message was sent."""
        if kind not in CLINICAL_KINDS:
            _LOG.error(WAKE_UNKNOWN, kind=kind, row_id=job_id)
            return False
        task, queue = CLINICAL_KINDS[kind]
        return send(self.url, task, queue, job_id)


@dataclass(frozen=True)
class ResearchWaker:
    """``wake(round_id)`` of the research zone."""

    url: str

    def __call__(self, round_id: str) -> bool:
        """Wake the research worker; return whether the message was sent."""
        return send(self.url, RUN_LOCAL_ROUND, RESEARCH_QUEUE, round_id)


@dataclass(frozen=True)
class ResearchJobWaker:
    """``wake_job(kind, job_id)`` of the research zone."""

    url: str

    def __call__(self, kind: str, job_id: str) -> bool:
        """Wake the research worker for a job; return whether the message was sent."""
        if kind not in RESEARCH_KINDS:
            _LOG.error(WAKE_UNKNOWN, kind=kind, row_id=job_id)
            return False
        return send(self.url, RESEARCH_KINDS[kind], RESEARCH_QUEUE, job_id)


def backlog(url: str, queues: tuple[str, ...]) -> int | None:
    """Return how many messages wait in these queues; None when the broker cannot say."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - only those who ask the broker pay for it

    try:
        with connect(url) as client:
            return sum(int(str(client.llen(queue))) for queue in queues)
    except (RedisError, OSError):
        return None


def backlog_of(url: str, kind: str) -> int | None:
    """Return how many messages wait in the queue of a kind of clinical job; None when nobody can say."""
    return backlog(url, (CLINICAL_KINDS[kind][1],)) if kind in CLINICAL_KINDS else 0
