"""The indexer: files what was received, assembles studies, and keeps the clinical zone's work moving."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance import logs, node
from appliance.processes import base

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from appliance.node import ClinicalZone
    from dicom_node.inbox import Inbox

IDLE_S: Final = 0.2
BEAT_EVERY_S: Final = 1.0
RECONCILE_EVERY_S: Final = 5.0
HOUSEKEEPING_EVERY_S: Final = 3.0
COMPLETION_EVERY_S: Final = 1.0
RETRY_STOPPED_EVERY_S: Final = 60.0
CATCH_UP_EVERY_S: Final = 3600.0
SILENCE_EVERY_S: Final = 60.0
THIN_EVERY_S: Final = 3600.0
SPACE_EVERY_S: Final = 5.0
RETENTION_EVERY_S: Final = 5.0  # a step each, until all studies were looked at; then hourly
MAX_FAILURES: Final = 10
DUTY_FAILED: Final = "indexer.duty_failed"

_LOG = logs.logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("indexer", _body, argv)


@dataclass
class Duty:
    """Something the indexer does again and again; one that fails does not hold up the others."""

    name: str
    run: Callable[[], object]
    every_s: float
    due_at: float = 0.0
    failures: int = 0

    def step(self, at: float) -> None:
        """Run if due. A failure is logged and tried again; too many in a row end the process.

        Raises
        ------
        Exception
            What the duty raised, when it failed too often: the supervisor starts a new process.
        """
        if at < self.due_at:
            return
        self.due_at = at + self.every_s
        try:
            self.run()
        except Exception as error:
            self.failures += 1
            _LOG.error(DUTY_FAILED, duty=self.name, failures=self.failures, exc_info=error)
            if self.failures >= MAX_FAILURES:
                raise
            self.due_at = at + min(0.5 * 2**self.failures, 30.0)
        else:
            self.failures = 0


@dataclass
class _Paced:
    """A sign of life that may be asked for at every entry, left once a second."""

    beat: Callable[[], None]
    due_at: float = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.due_at:
            self.beat()
            self.due_at = time.monotonic() + BEAT_EVERY_S


def _body(process: base.Process) -> None:
    from appliance.intake import open_inbox  # noqa: PLC0415 - signals and logs first

    zone = node.open_clinical(process.settings)
    duties = _duties(zone, open_inbox(zone), process)

    def step() -> None:
        for duty in duties:
            if not process.stopping.is_set():
                duty.step(time.monotonic())

    process.loop(step, IDLE_S)


def _duties(zone: ClinicalZone, inbox: Inbox, process: base.Process) -> list[Duty]:
    from appliance import (  # noqa: PLC0415
        broker,
        cataloguing,
        completion,
        delivery,
        figures,
        intake,
        models,
        quarantine,
        retention,
        routing,
        silence,
        space_alarm,
        traffic,
        work,
    )
    from appliance.db.base import now  # noqa: PLC0415
    from appliance.db.clinical import ClinicalJob  # noqa: PLC0415
    from appliance.habits import Week  # noqa: PLC0415
    from appliance.review import folders  # noqa: PLC0415

    alive = _Paced(process.beat)
    looks = intake.Looks(zone)
    sweeper = retention.Sweeper(zone)
    watch = silence.Watch(zone, Week(frozenset(zone.settings.monitoring.holidays)))

    def index() -> None:
        while not process.stopping.is_set() and intake.index_batch(zone, inbox, alive=alive).total:
            pass

    def assemble() -> None:
        # Before the look at the inbox: what comes after it was received later than this moment.
        at = now()
        oldest = inbox.oldest_received_at()
        looks.look(at if oldest is None else min(at, oldest))

    def look_for_silence() -> None:
        if zone.settings.monitoring.silence:
            watch.look(now())
        else:
            watch.end_all(now())

    def thin() -> None:
        keep_days = zone.settings.monitoring.keep_traffic_days
        traffic.thin(zone.engine, traffic.oldest_kept(now(), keep_days))
        figures.fold(figures.folder_of(zone.settings))

    works = {"infer": zone.settings.inference.enabled, "fetch": zone.settings.fetch.enabled}
    idle = [kind for kind in works if not works[kind]]

    def reconcile() -> None:
        def backlog(kind: str) -> int | None:
            if kind in idle:
                return None  # nobody takes these messages; the rows wait
            return broker.backlog_of(node.redis_url(zone.settings, "clinical"), kind)

        work.reconcile(zone.engine, ClinicalJob, zone.wake, now(), backlog)
        delivery.align(zone)

    return [
        Duty("index", index, IDLE_S),
        Duty("assemble", assemble, 2 * IDLE_S),
        Duty("completion", lambda: completion.mark_complete(zone), COMPLETION_EVERY_S),
        Duty("catalogue", lambda: cataloguing.fill(zone), 2 * IDLE_S),
        Duty("stopped", lambda: intake.retry_stopped(zone), RETRY_STOPPED_EVERY_S),
        Duty("reconcile", reconcile, RECONCILE_EVERY_S),
        Duty("catch_up", lambda: routing.catch_up(zone, now()), CATCH_UP_EVERY_S),
        Duty("candidates", lambda: models.take_in_candidates(zone), HOUSEKEEPING_EVERY_S),
        Duty("quarantine", lambda: quarantine.settle(zone, inbox), HOUSEKEEPING_EVERY_S),
        Duty("reviews", lambda: folders.sweep(zone), HOUSEKEEPING_EVERY_S),
        Duty("retention", lambda: sweeper.step(now()), RETENTION_EVERY_S),
        Duty("space", lambda: space_alarm.look(zone), SPACE_EVERY_S),
        Duty("silence", look_for_silence, SILENCE_EVERY_S),
        Duty("traffic", thin, THIN_EVERY_S),
        Duty("bundles", lambda: intake.remove_acknowledged_bundles(zone), HOUSEKEEPING_EVERY_S),
    ]


if __name__ == "__main__":
    sys.exit(main())
