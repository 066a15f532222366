"""A node on disk and in memory: folders, keys, databases, and the two zones that processes open."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine, select

from appliance import broker, crossing, keys
from appliance.db.clinical import ClinicalLedgerEntry, Rule
from appliance.db.engine import make_engine, writing
from appliance.db.research import ResearchLedgerEntry
from appliance.ledger import Ledger
from appliance.meeting import (
    MAX_SOCKET_PATH,
    NodeError,
    bound_port,
    publish_port,
    research_socket,
    run_dir,
    zones_apart,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.settings import Settings, Zone

NODE_CREATED: Final = "node.created"

__all__ = [
    "MAX_SOCKET_PATH",
    "ClinicalZone",
    "NodeError",
    "ResearchZone",
    "bound_port",
    "create_node",
    "database_url",
    "head_path",
    "open_clinical",
    "open_research",
    "publish_port",
    "redis_socket",
    "redis_url",
    "research_socket",
    "run_dir",
    "zones_apart",
]


@dataclass(frozen=True)
class ClinicalZone:
    """All that a process of the clinical zone works with."""

    settings: Settings
    root: Path
    engine: Engine
    keys: keys.ClinicalKeys
    ledger: Ledger
    wake: Callable[[str, str], bool]  # kind, job id; False, never an error, when Redis is away


@dataclass(frozen=True)
class ResearchZone:
    """All that a process of the research zone works with."""

    settings: Settings
    root: Path
    engine: Engine
    keys: keys.ResearchKeys
    ledger: Ledger
    wake: Callable[[str], bool]  # round id; False, never an error, when Redis is away
    wake_job: Callable[[str, str], bool]  # kind, job id; as above


def create_node(settings: Settings, zone: Zone | None = None) -> None:
    """Make folders (0700), keys, databases and the default rule; what exists already stays as it is.

    Parameters
    ----------
    settings : Settings
    zone : Zone or None
        The only zone to make, where each runs as a user of its own; None for both.
    """
    if zone in {None, "clinical"}:
        _create_clinical(settings)
    if zone in {None, "research"}:
        _create_research(settings)
    run_dir(settings)


def _create_clinical(settings: Settings) -> None:
    from appliance.db import migrate  # noqa: PLC0415 - running processes need no migrations

    root = settings.zone_root("clinical")
    _make_folders(settings.data_root, root)
    crossing.make_folders(settings.crossing_out.parent, settings.crossing_out)
    keys.create_clinical_keys(root)
    migrate.upgrade(database_url(settings, "clinical"), "clinical")
    opened = open_clinical(settings)
    with writing(opened.engine) as session:
        _create_default_rule(session, opened.ledger)
    opened.engine.dispose()


def _create_research(settings: Settings) -> None:
    from appliance.db import migrate  # noqa: PLC0415 - running processes need no migrations

    root, spool = settings.zone_root("research"), settings.crossing_in
    _make_folders(settings.data_root, root)
    crossing.make_folders(spool.parent, spool, spool / "acks", spool / "packages")
    keys.create_research_keys(root)
    keys.publish_research_key(keys.load_research_keys(root).signing.public_key(), spool)
    migrate.upgrade(database_url(settings, "research"), "research")


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _create_default_rule(session: Session, ledger: Ledger) -> None:
    """Give a new node one rule: everything to research and inference, nowhere else."""
    is_new = session.scalar(select(ClinicalLedgerEntry.sequence).limit(1)) is None
    if not is_new:
        return
    rule = Rule(
        name="everything",
        condition={},
        action={"research": True, "inference": True, "destinations": [], "priority": 5},
    )
    session.add(rule)
    session.flush()
    ledger.append(session, kind=NODE_CREATED, subject_id=rule.id, body={"rule_id": rule.id})


def database_url(settings: Settings, zone: Zone) -> str:
    """Return the configured URL, or that of the embedded SQLite file."""
    configured = settings.clinical.database_url if zone == "clinical" else settings.research.database_url
    return configured or f"sqlite:///{settings.zone_root(zone) / f'{zone}.db'}"


def redis_url(settings: Settings, zone: Zone) -> str:
    """Return the configured broker URL, or that of the embedded server's socket."""
    configured = settings.clinical.redis_url if zone == "clinical" else settings.research.redis_url
    return configured or f"redis+socket://{redis_socket(settings, zone)}"


def redis_socket(settings: Settings, zone: Zone) -> Path:
    """Return the Unix socket of the zone's embedded Redis."""
    return run_dir(settings) / f"{zone}_redis.sock"


def head_path(settings: Settings, zone: Zone) -> Path:
    """Return the file that keeps the newest head of the zone's ledger."""
    return settings.zone_root(zone) / "ledger.head"


def open_clinical(settings: Settings) -> ClinicalZone:
    """Open the clinical zone for this process; nothing connects before it is used.

    Raises
    ------
    NodeError
        If the zone belongs to another user.
    KeyFileError
        If its keys cannot be read.
    """
    root = _own(settings.zone_root("clinical"))
    secrets = keys.load_clinical_keys(root)
    return ClinicalZone(
        settings=settings,
        root=root,
        engine=make_engine(database_url(settings, "clinical")),
        keys=secrets,
        ledger=Ledger(
            ClinicalLedgerEntry, secrets.signing, secrets.ledger_salt, head_path(settings, "clinical")
        ),
        wake=broker.ClinicalWaker(redis_url(settings, "clinical")),
    )


def open_research(settings: Settings) -> ResearchZone:
    """Open the research zone for this process; raises like :func:`open_clinical`."""
    root = _own(settings.zone_root("research"))
    secrets = keys.load_research_keys(root)
    return ResearchZone(
        settings=settings,
        root=root,
        engine=make_engine(database_url(settings, "research")),
        keys=secrets,
        ledger=Ledger(
            ResearchLedgerEntry, secrets.signing, secrets.ledger_salt, head_path(settings, "research")
        ),
        wake=broker.ResearchWaker(redis_url(settings, "research")),
        wake_job=broker.ResearchJobWaker(redis_url(settings, "research")),
    )


def _own(root: Path) -> Path:
    """Refuse to work in another user's zone: root could, and would leave files that its owner cannot open."""
    if root.exists() and root.stat().st_uid != os.geteuid():
        uid = root.stat().st_uid
        owner = str(uid)
        with contextlib.suppress(KeyError):
            owner = pwd.getpwuid(uid).pw_name
        raise NodeError(f"{root}: belongs to user {owner}; run this as that user (sudo -u {owner} ...)")
    return root
