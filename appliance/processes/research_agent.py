"""The research zone's agent: imports what crossed, keeps rounds moving, answers panel and federation."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from appliance import health, node
from appliance.processes import base
from appliance.processes.indexer import Duty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.importing import Refusals
    from appliance.node import ResearchZone

IDLE_S: Final = 0.25
IMPORT_EVERY_S: Final = 0.5
RECONCILE_EVERY_S: Final = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("research_agent", _body, argv)


def _body(process: base.Process) -> None:
    from appliance import research_api  # noqa: PLC0415 - signals and logs first
    from appliance.federation.renewal import LOOK_EVERY_S, Renewal  # noqa: PLC0415
    from appliance.importing import Refusals  # noqa: PLC0415

    zone = node.open_research(process.settings)
    refusals = Refusals()
    joined = process.settings.federation
    renewal = Renewal(joined.workspace if joined.enabled else None, process.settings.zone_root("research"))
    duties = [*_duties(zone, refusals), Duty("renewal", renewal.look, LOOK_EVERY_S)]
    services = research_api.start_api(zone)

    def step() -> None:
        for duty in duties:
            if not process.stopping.is_set():
                duty.step(time.monotonic())

    try:
        process.loop(step, IDLE_S, lambda: {health.REFUSED_BUNDLES: len(refusals), **renewal.detail()})
    finally:
        services.stop()


def _duties(zone: ResearchZone, refusals: Refusals) -> list[Duty]:
    from appliance import broker, importing, work  # noqa: PLC0415
    from appliance.db.base import now  # noqa: PLC0415
    from appliance.db.engine import reading, writing  # noqa: PLC0415
    from appliance.db.research import ResearchJob, Round  # noqa: PLC0415
    from appliance.federation import protocols  # noqa: PLC0415

    def backlog(kind: str) -> int | None:
        del kind  # rounds have one queue
        return broker.backlog(node.redis_url(zone.settings, "research"), (broker.RESEARCH_QUEUE,))

    def import_bundles() -> None:
        importing.import_bundles(zone, refusals)

    def reconcile() -> None:
        work.reconcile(zone.engine, Round, zone.wake, now(), backlog)
        work.reconcile(zone.engine, ResearchJob, zone.wake_job, now(), backlog)

    def suspend_expired() -> None:
        with reading(zone.engine) as session:
            expired = protocols.any_expired(session, now())
        if expired:
            with writing(zone.engine) as session:
                protocols.suspend_expired(session, zone.ledger, now())

    return [
        Duty("import", import_bundles, IMPORT_EVERY_S),
        Duty("reconcile", reconcile, RECONCILE_EVERY_S),
        Duty("suspend_expired", suspend_expired, RECONCILE_EVERY_S),
    ]


if __name__ == "__main__":
    sys.exit(main())
