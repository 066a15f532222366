"""Whether the node is well: beats of its processes, its stores, its work."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance import broker, node, owners, space
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import make_engine, reading
from appliance.db.research import ResearchJob, Round
from appliance.space import Grade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.settings import Settings, Zone

BEAT_EVERY_S: Final = 5.0
BEAT_TOO_OLD_S: Final = 30.0
MEMBERSHIP: Final = "federation certificate"
CERTIFICATE_ENDS: Final = "certificate_ends"  # there too: seconds since the epoch
CERTIFICATE_WARNING_S: Final = 30 * 86400.0
REFUSED_BUNDLES: Final = "refused_bundles"  # in the research agent's signs of life

CLINICAL_PROCESSES: Final = (
    "clinical_redis",
    "scp",
    "indexer",
    "clinical_worker",
    "fetch_worker",
    "inference_worker",
    "web",
)
RESEARCH_PROCESSES: Final = ("research_redis", "research_agent", "research_worker", "federation_site")
RECEIVERS: Final = frozenset({"scp"})  # processes that let associations finish before they end
REDIS_PROCESSES: Final = frozenset({"clinical_redis", "research_redis"})


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False  # well for now, and to be seen to
    stops: bool = True  # when it fails, the node does not do its work; otherwise something waits for a person


@dataclass(frozen=True)
class Health:
    """All checks of a node; ``well`` when every one is."""

    well: bool
    checks: list[Check]

    @property
    def ready(self) -> bool:
        """Whether the node does its work, whatever waits for a person."""
        return all(check.ok or not check.stops for check in self.checks)


@dataclass(frozen=True)
class Beat:
    """A sign of life that a process left."""

    process: str
    at: float  # seconds since the epoch
    pid: int
    started: str
    detail: dict[str, Any]

    @property
    def age_s(self) -> float:
        """Seconds since."""
        return max(0.0, time.time() - self.at)

    @property
    def gone(self) -> bool:
        """Whether the process that left it has ended."""
        return owners.started(self.pid) != self.started


def processes(settings: Settings, zone: Zone | None = None) -> tuple[str, ...]:
    """Return the names of the processes that this node runs (those of one zone, if given)."""
    wanted = {
        "clinical_redis": not settings.clinical.redis_url,
        "research_redis": not settings.research.redis_url,
        "fetch_worker": settings.fetch.enabled,
        "inference_worker": settings.inference.enabled,
        "web": settings.web.enabled,
        "federation_site": settings.federation.enabled,
    }
    names = {"clinical": CLINICAL_PROCESSES, "research": RESEARCH_PROCESSES}
    chosen = names[zone] if zone is not None else (*CLINICAL_PROCESSES, *RESEARCH_PROCESSES)
    return tuple(name for name in chosen if wanted.get(name, True))


def open_zones(settings: Settings) -> tuple[Zone, ...]:
    """Return the zones that this user may enter: both, or one of them where each has a user of its own."""
    zones: tuple[Zone, ...] = ("clinical", "research")
    return tuple(
        zone
        for zone in zones
        if not settings.zone_root(zone).exists() or os.access(settings.zone_root(zone), os.R_OK | os.X_OK)
    )


def beat(settings: Settings, process: str, detail: dict[str, Any] | None = None) -> None:
    """Leave a sign of life, from the loop whose standing still would be the fault."""
    folder = node.run_dir(settings) / "health"
    folder.mkdir(mode=0o700, exist_ok=True)
    pid = os.getpid()
    content = {"at": time.time(), "pid": pid, "started": owners.started(pid), "detail": detail or {}}
    temporary = folder / f".{process}.{pid}"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(folder / f"{process}.json")


def last_beat(settings: Settings, process: str) -> Beat | None:
    """Return the newest sign of life of a process."""
    try:
        content = json.loads(
            (node.run_dir(settings) / "health" / f"{process}.json").read_text(encoding="utf-8")
        )
        return Beat(process, float(content["at"]), int(content["pid"]), content["started"], content["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def overall(settings: Settings) -> Health:
    """Look at everything; takes well under a second on a healthy node."""
    found: list[Check] = []
    checks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _processes,
        _redis,
        _databases,
        _crossing,
        _membership,
        _disk,
    )
    for check in checks:
        found.extend(check(settings))
    return Health(all(check.ok for check in found), found)


def _processes(settings: Settings) -> Iterator[Check]:
    for name in [name for zone in open_zones(settings) for name in processes(settings, zone)]:
        if name in REDIS_PROCESSES:
            continue
        last = last_beat(settings, name)
        fix = "look at its log lines; the supervisor restarts it by itself (cloister up)"
        if last is None or last.gone:
            yield Check(f"process {name}", ok=False, detail="not running", fix=fix)
        elif last.age_s > BEAT_TOO_OLD_S:
            yield Check(
                f"process {name}", ok=False, detail=f"no sign of life for {last.age_s:.0f} s", fix=fix
            )
        else:
            yield Check(f"process {name}", ok=True, detail="running")


def _redis(settings: Settings) -> Iterator[Check]:
    from redis.exceptions import RedisError  # noqa: PLC0415 - only those who look at Redis pay for it

    for zone in open_zones(settings):
        name = f"{zone} redis"
        try:
            with broker.connect(node.redis_url(settings, zone)) as client:
                client.ping()
        except (RedisError, OSError) as error:
            fix = "work goes on from the database once it is back; the supervisor restarts the embedded one"
            yield Check(name, ok=False, detail=type(error).__name__, fix=fix)
        else:
            yield Check(name, ok=True, detail="answers")


def _databases(settings: Settings) -> Iterator[Check]:
    for zone in open_zones(settings):
        engine = make_engine(node.database_url(settings, zone), read_only=True)
        models = (ClinicalJob,) if zone == "clinical" else (Round, ResearchJob)
        try:
            with reading(engine) as session:
                dead = sum(
                    session.scalar(
                        select(func.count()).select_from(model).where(model.state == WorkState.DEAD)
                    )
                    or 0
                    for model in models
                )
        except SQLAlchemyError as error:
            fix = "check the database URL or file, then run: cloister doctor"
            yield Check(f"{zone} database", ok=False, detail=type(error).__name__, fix=fix)
        else:
            yield Check(f"{zone} database", ok=True, detail="answers")
            fix = "open Jobs in the panel: each dead job shows its reason and a retry button"
            yield Check(f"{zone} jobs", dead == 0, f"{dead} dead", "" if dead == 0 else fix, stops=False)
        finally:
            engine.dispose()


def _crossing(settings: Settings) -> Iterator[Check]:
    """Say what the research agent refuses, as it counted itself."""
    last = last_beat(settings, "research_agent")
    if "research" not in open_zones(settings) or last is None or last.gone:
        return
    refused = last.detail.get(REFUSED_BUNDLES, 0)
    fix = (
        f"the log of research_agent names each bundle and the reason; restore or remove its folder in"
        f" {settings.crossing_out}; a bundle that was put right is taken within a quarter of an hour"
    )
    yield Check(
        "crossing", refused == 0, f"{refused} bundles refused", "" if refused == 0 else fix, stops=False
    )


def _membership(settings: Settings) -> Iterator[Check]:
    """Say when the certificate with which this site connects to its federation ends; it renews by itself."""
    last = last_beat(settings, "research_agent") if settings.federation.enabled else None
    ends = None if last is None else last.detail.get(CERTIFICATE_ENDS)
    if ends is None:
        return
    left_s, day = ends - time.time(), time.strftime("%Y-%m-%d", time.gmtime(ends))
    fix = "run: cloister join --check, which says what is blocked, then cloister join --renew"
    if left_s <= 0:
        detail = f"expired on {day}; the coordinator refuses this site"
        yield Check(MEMBERSHIP, ok=False, detail=detail, fix=fix, stops=False)
    elif left_s < CERTIFICATE_WARNING_S:
        yield Check(MEMBERSHIP, ok=True, detail=f"ends on {day}, not renewed yet", fix=fix, warning=True)
    else:
        yield Check(MEMBERSHIP, ok=True, detail=f"good until {day}")


def _disk(settings: Settings) -> Iterator[Check]:
    """Say what gives way for want of space, and below which bound the next thing does."""
    free_mib = shutil.disk_usage(settings.data_root).free // 2**20
    grade = space.grade_of(settings.dicom, settings.data_root)
    if grade is Grade.ENOUGH:
        yield Check("disk", ok=True, detail=f"{free_mib} MiB free")
        return
    least = settings.dicom.min_free_mib
    fix = f"free space under {settings.data_root}; below {least} MiB instances are refused"
    stops = grade >= Grade.NO_ASSOCIATIONS
    yield Check("disk", ok=False, detail=f"{free_mib} MiB free: {grade.words}", fix=fix, stops=stops)
