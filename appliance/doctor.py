"""Checks that go deeper than a running node's health: for a person who wants to know what is wrong."""

from __future__ import annotations

import os
import platform
import stat
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from anonymizer.errors import ProfileError
from anonymizer.profiles import load_profile
from appliance import health, keys, ledger, node, tls_checks
from appliance.consortium import replica
from appliance.consortium.chain import audit
from appliance.db import migrate
from appliance.db.engine import make_engine, reading
from appliance.errors import ApplianceError
from appliance.health import Check, Health
from appliance.processes._redis import server_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.settings import Settings, Zone

_ZONES: Final[tuple[Zone, Zone]] = ("clinical", "research")
_LIBRARIES: Final = (
    "sqlalchemy",
    "celery",
    "pydicom",
    "pynetdicom",
    "onnxruntime",
    "torch",
    "nvflare",
    "nicegui",
)


def examine(settings: Settings) -> Health:
    """Check programs, folders, keys, schemas, ledgers, and whether the node runs well."""
    found = [*_programs(), *_folders(settings)]
    if all(check.ok for check in found):
        found += [*_keys(settings), *_schemas(settings), *_ledgers(settings), *_separation(settings)]
        if "clinical" in health.open_zones(settings):
            found += [*tls_checks.checks(settings), *_profile(settings)]
        found += health.overall(settings).checks
        found += _federation(settings, {check.name for check in found})
    return Health(all(check.ok for check in found), found)


def _federation(settings: Settings, known: set[str]) -> Iterator[Check]:
    """Check the way to the coordinator, where this site has joined one."""
    from appliance.federation import preflight  # noqa: PLC0415 - only a site of a federation pays for it

    workspace = settings.federation.workspace
    if settings.federation.enabled and workspace is not None and "research" in health.open_zones(settings):
        yield from (check for check in preflight.of_site(workspace) if check.name not in known)


def _programs() -> Iterator[Check]:
    supported = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Check("python", supported, platform.python_version(), "install Python 3.11 or 3.12")
    for name in _LIBRARIES:
        try:
            yield Check(f"library {name}", ok=True, detail=metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(f"library {name}", ok=False, detail="not installed", fix="run: make install")
    try:
        yield Check("embedded redis", ok=os.access(server_program(), os.X_OK), detail="redis-server is here")
    except ApplianceError as error:
        yield Check("embedded redis", ok=False, detail=str(error), fix="run: make install")


def _folders(settings: Settings) -> Iterator[Check]:
    fix = "run: cloister init, or cloister up, which makes what is missing"
    zones = health.open_zones(settings)
    folders = [settings.zone_root(zone) for zone in zones]
    theirs = {settings.crossing_out: "clinical" not in zones, settings.crossing_in: "research" not in zones}
    for folder in (*folders, *theirs):
        name = f"folder {folder.relative_to(settings.data_root)}"
        if not folder.is_dir():
            yield Check(name, ok=False, detail="missing", fix=fix)
        elif folder in folders and stat.S_IMODE(folder.stat().st_mode) & 0o077:
            yield Check(name, ok=False, detail="others may enter", fix=f"run: chmod 700 {folder}")
        elif theirs.get(folder) and not os.access(folder, os.R_OK | os.X_OK):
            yield Check(name, ok=False, detail="not readable", fix=f"let this user's group read {folder}")
        elif not theirs.get(folder) and not os.access(folder, os.W_OK | os.X_OK):
            yield Check(name, ok=False, detail="not writable", fix=f"give this user the folder {folder}")
        else:
            yield Check(name, ok=True, detail="present")


def _keys(settings: Settings) -> Iterator[Check]:
    fix = "restore the key file from its backup; a new key cannot open what the old one closed"
    for zone in health.open_zones(settings):
        load = keys.load_clinical_keys if zone == "clinical" else keys.load_research_keys
        try:
            load(settings.zone_root(zone))
        except keys.KeyFileError as error:
            yield Check(f"{zone} keys", ok=False, detail=str(error), fix=fix)
        else:
            yield Check(f"{zone} keys", ok=True, detail="readable by their owner alone")


def _profile(settings: Settings) -> Iterator[Check]:
    """Say whether instances can be de-identified by the profile that is set; without one none is."""
    name = settings.deidentification.profile
    try:
        profile = load_profile(name)
    except ProfileError as error:
        fix = "set deidentification.profile to a profile's name or file"
        yield Check("de-identification profile", ok=False, detail=str(error), fix=fix)
    else:
        yield Check("de-identification profile", ok=True, detail=f"{profile.name} {profile.hash[:16]}")


def _schemas(settings: Settings) -> Iterator[Check]:
    for zone in health.open_zones(settings):
        try:
            found = migrate.current(node.database_url(settings, zone), zone)
        except SQLAlchemyError as error:
            fix = f"check {zone}.database_url and that its server answers"
            yield Check(f"{zone} schema", ok=False, detail=type(error).__name__, fix=fix)
            continue
        wanted = migrate.head(zone)
        fix = "run: cloister up, which migrates; if it is newer than this program, update the program"
        yield Check(f"{zone} schema", found == wanted, f"revision {found}, this program wants {wanted}", fix)


def _ledgers(settings: Settings) -> Iterator[Check]:
    for zone in health.open_zones(settings):
        try:
            key = _public_key(settings, zone)
            engine = make_engine(node.database_url(settings, zone), read_only=True)
            report = ledger.verify(engine, key, node.head_path(settings, zone))
            engine.dispose()
        except (ApplianceError, SQLAlchemyError) as error:
            yield Check(f"{zone} ledger", ok=False, detail=type(error).__name__, fix="see the checks above")
        else:
            detail = f"{report.entries} entries, {len(report.problems)} problems"
            fix = "run: cloister ledger verify; keep the database as it is and tell the privacy officer"
            yield Check(f"{zone} ledger", report.ok, detail, "" if report.ok else fix)
        if zone == "research":
            yield _consortium(settings)


def _consortium(settings: Settings) -> Check:
    """Say whether something is wrong with the ledger that all sites of a federation share."""
    name = "consortium ledger"
    try:
        engine = make_engine(node.database_url(settings, "research"), read_only=True)
        with reading(engine) as session:
            open_ones = len(replica.open_findings(session))
            _, found = audit(replica.current(session))
        engine.dispose()
    except SQLAlchemyError as error:
        return Check(name, ok=False, detail=type(error).__name__, fix="see the checks above")
    detail = f"{open_ones} open findings, {len(found)} problems in the replica"
    fix = "run: cloister ledger verify --consortium; no round runs here until a person has resolved it"
    ok = not open_ones and not found
    return Check(name, ok, detail, "" if ok else fix)


def _public_key(settings: Settings, zone: Zone) -> ledger.PublicKey:
    root: Path = settings.zone_root(zone)
    if zone == "clinical":
        return keys.load_clinical_keys(root).signing.public_key()
    return keys.load_research_keys(root).signing.public_key()


def _separation(settings: Settings) -> Iterator[Check]:
    """Say whether the zones run as one user: right for a demo, not for patients' data."""
    owners = {settings.zone_root(zone).stat().st_uid for zone in _ZONES}
    detail = (
        "separate users" if len(owners) == 2 else "one user for both zones: for trials, not for real patients"
    )
    yield Check("zones", ok=True, detail=detail)
