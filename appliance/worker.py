"""The Celery applications. Nothing here imports torch or onnxruntime: parents of pools stay small."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery import Celery, signals
from kombu import Queue

from appliance import broker, health, logs
from appliance.children import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.processes.base import Process

    class Task(Protocol):
        """A Celery task of one row id."""

        name: str

        def __call__(self, row_id: str, /) -> None:
            """Run here and now."""


VISIBILITY_TIMEOUT_S: Final = 6 * 3600  # above the longest round; the reconciler is faster than this
SHORT_TASKS_MAY_END_S: Final = 2.0
STOP_WITHIN_S: Final = 4.5
MAINTAIN_POOL_EVERY_S: Final = 1.0  # Celery does so every five seconds
RECYCLED: Final = 155  # billiard's "process ended in good order, start another"
LOOP_TELLS_EVERY_S: Final = 1.0
LOOP_MAY_BE_SILENT_S: Final = 60.0  # several attempts to talk to a broker that answers nothing
CHILD_IDLE_EXIT: Final = "worker.child_idle_exit"
BEAT_FAILED: Final = "worker.beat_failed"

_LOG = logs.logger(__name__)

_COMMON: Final[dict[str, Any]] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_acks_on_failure_or_timeout": True,
    "task_ignore_result": True,
    "task_store_errors_even_if_ignored": False,
    "result_backend": None,
    "worker_prefetch_multiplier": 1,
    "worker_concurrency": 1,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": broker.CONNECT_TIMEOUT_S,
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "socket_connect_timeout": broker.CONNECT_TIMEOUT_S,
        "socket_timeout": 10.0,  # else a broker that answers nothing stops the main loop for good
        "health_check_interval": 10,
    },
    "worker_soft_shutdown_timeout": SHORT_TASKS_MAY_END_S,
    "enable_utc": True,
    "timezone": "UTC",
}


def _make(name: str, include: list[str], queues: tuple[str, ...]) -> Celery:
    app = Celery(name, include=include, set_as_current=False, fixups=[])
    app.conf.update(_COMMON)
    app.conf.update(
        task_queues=[Queue(queue, routing_key=queue) for queue in queues],
        task_default_queue=queues[0],
        task_create_missing_queues=False,
    )
    return app


clinical_app: Final = _make(
    "clinical",
    ["appliance.tasks.clinical", "appliance.tasks.fetching", "appliance.tasks.inference"],
    (broker.CLINICAL_QUEUE, broker.FETCH_QUEUE, broker.INFERENCE_QUEUE),
)
research_app: Final = _make("research", ["appliance.tasks.research"], (broker.RESEARCH_QUEUE,))


@functools.lru_cache(maxsize=8)
def sender(url: str) -> Celery:
    """Return an application that only sends, to this broker."""
    app = Celery("sender", set_as_current=False, fixups=[])
    app.conf.update(_COMMON)
    app.conf.update(
        broker_url=url,
        broker_transport_options={
            **_COMMON["broker_transport_options"],
            "max_retries": 0,  # a wake-up call is not worth waiting for
            "socket_timeout": broker.CONNECT_TIMEOUT_S,
        },
        task_queues=[
            Queue(name, routing_key=name)
            for name in (
                broker.CLINICAL_QUEUE,
                broker.FETCH_QUEUE,
                broker.INFERENCE_QUEUE,
                broker.RESEARCH_QUEUE,
            )
        ],
        task_default_queue=broker.CLINICAL_QUEUE,
    )
    return app


def _keep_logging(**_: Any) -> None:
    """Tell Celery that logging is set up already."""


class Liveness:
    """Signs of life of a worker, from a thread of its own, for as long as its main loop gets on.

    The loop says so every second. While the broker is away Celery's loop stands still on purpose; then every
    second of its waiting counts, so that a long task of the child outlives the outage. A loop that says
    nothing at all for long is stuck, and the signs of life stop. The first one follows the loop's first word.

    Parameters
    ----------
    beat : callable
        Leaves one sign of life.
    silent_s : float
        How long the loop may say nothing.
    every_s : float
        Time between two signs of life.
    """

    def __init__(
        self,
        beat: Callable[[], None],
        silent_s: float = LOOP_MAY_BE_SILENT_S,
        every_s: float = health.BEAT_EVERY_S,
    ) -> None:
        self._beat = beat
        self._silent_s = silent_s
        self._every_s = every_s
        self._began = threading.Event()
        self._last = 0.0

    def start(self) -> None:
        """Watch until the process ends."""
        threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def progress(self) -> None:
        """Say that the main loop gets on."""
        self._last = time.monotonic()
        self._began.set()

    def _watch(self) -> None:
        self._began.wait()
        while True:
            if time.monotonic() - self._last <= self._silent_s:
                try:
                    self._beat()
                except OSError as error:
                    _LOG.warning(BEAT_FAILED, error=type(error).__name__)
            time.sleep(self._every_s)


def _consumer(liveness: Liveness) -> type[Any]:
    """Return Celery's consumer, which says also while it waits for the broker that it gets on."""
    from celery.worker.consumer import Consumer  # noqa: PLC0415 - a sender needs none

    class Telling(Consumer):  # type: ignore[misc]
        def ensure_connected(self, conn: Any) -> Any:
            ensure = conn.ensure_connection

            def telling(*arguments: Any, callback: Callable[[], None], **options: Any) -> Any:
                def every_second() -> None:
                    liveness.progress()
                    callback()

                return ensure(*arguments, callback=every_second, **options)

            conn.ensure_connection = telling
            return super().ensure_connected(conn)

    return Telling


def _watch_the_loop(liveness: Liveness, sender: Any, **_: Any) -> None:
    liveness.progress()
    sender.timer.call_repeatedly(LOOP_TELLS_EVERY_S, liveness.progress)
    sender.timer.call_repeatedly(MAINTAIN_POOL_EVERY_S, sender.pool.maintain_pool)


def _stop_in_time(**_: Any) -> None:
    """End this process even if Celery's shutdown hangs, as it may when Redis is away; children follow."""
    timer = threading.Timer(STOP_WITHIN_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


class IdleExit:
    """Ends a pool's child that had nothing to do for a while, and with it the memory that its libraries took.

    The parent starts a new, small child at once. A task that arrives at that very moment is either still
    in the parent's hands, which gives it to the new child, or the dying one took it and it is redelivered.

    Parameters
    ----------
    idle_s : float
        How long without a task; a child that never had one stays.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._condition = threading.Condition()
        self._busy = 0
        self._last: float | None = None

    def start(self) -> None:
        """Watch from a thread of its own."""
        threading.Thread(target=self._watch, name="idle-exit", daemon=True).start()

    def task_started(self, **_: Any) -> None:
        """Note that a task runs."""
        with self._condition:
            self._busy += 1

    def task_ended(self, **_: Any) -> None:
        """Note that it ended."""
        with self._condition:
            self._busy -= 1
            self._last = time.monotonic()
            self._condition.notify()

    def _watch(self) -> None:
        with self._condition:
            while True:
                if self._busy or self._last is None:
                    self._condition.wait()
                    continue
                left_s = self._last + self._idle_s - time.monotonic()
                if left_s <= 0:
                    _LOG.info(CHILD_IDLE_EXIT, idle_s=self._idle_s)
                    os._exit(RECYCLED)  # holding the lock: no task can start meanwhile
                self._condition.wait(left_s)


def task(app: Celery, name: str) -> Callable[[Callable[[str], None]], Task]:
    """Return the decorator that makes a function of one row id a task of this name."""
    made: Callable[[Callable[[str], None]], Task] = app.task(
        name=name, acks_late=True, reject_on_worker_lost=True, ignore_result=True
    )
    return made


def run_worker(app: Celery, process: Process, *, url: str, queue: str, idle_s: float | None = None) -> None:
    """Run a worker with one prefork child on one queue until a signal ends it.

    Parameters
    ----------
    app : Celery
        ``clinical_app`` or ``research_app``.
    process : Process
        This process; its settings are kept for the tasks of the child.
    url : str
        Broker.
    queue : str
        The only queue this worker takes from.
    idle_s : float or None
        End the child after so long without a task; None keeps it.
    """
    from appliance.tasks import runner  # noqa: PLC0415 - a sender needs no tasks

    settings, name = process.settings, process.name
    runner.configure(settings)
    app.conf.broker_url = url
    app.set_default()
    parent_pid = os.getpid()

    def in_child(**_: Any) -> None:
        die_with_parent(signal.SIGKILL, parent_pid)
        logs.setup(settings.logging, f"{name}.child")
        if idle_s is not None:
            idle = IdleExit(idle_s)
            signals.task_prerun.connect(idle.task_started, weak=False)
            signals.task_postrun.connect(idle.task_ended, weak=False)
            idle.start()

    signals.worker_process_init.connect(in_child, weak=False)
    signals.setup_logging.connect(_keep_logging, weak=False)
    signals.worker_shutting_down.connect(_stop_in_time, weak=False)
    liveness = Liveness(process.beat)
    liveness.start()
    signals.worker_ready.connect(functools.partial(_watch_the_loop, liveness), weak=False)
    worker = app.Worker(
        hostname=f"{name}@{settings.name}",
        queues=[queue],
        concurrency=1,
        pool_cls="prefork",
        consumer_cls=_consumer(liveness),
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        loglevel=settings.logging.level,
        quiet=True,
    )
    worker.start()
