"""Erasing: files of deleted studies go, after their rows; killed anywhere and repeated, it ends the same."""

from __future__ import annotations

import contextlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs
from appliance.db.clinical import ClinicalJob, Instance, Result
from appliance.db.engine import reading, writing
from appliance.review.folders import forget_study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from appliance.node import ClinicalZone
    from appliance.work import Claim

ERASE: Final = "erase"
ERASED: Final = "retention.erased"
FOLDERS: Final = ("instances", "results")
HEARTBEAT_EVERY: Final = 200

_LOG = logs.logger(__name__)


def erase(zone: ClinicalZone, claim: Claim) -> None:
    """Remove the files that a job names, and the folders that become empty. Ends the claim.

    A file that a row points to stays: no job can name one, and if one did, the row would be right.
    """
    paths = [path for path in claim.row.progress.get("paths", ()) if _is_ours(path)]
    kept = _pointed_to(zone, paths)
    folders: set[Path] = set()
    removed = 0
    for number, path in enumerate(paths):
        if number % HEARTBEAT_EVERY == HEARTBEAT_EVERY - 1:
            claim.heartbeat()
        if path in kept:
            continue
        (zone.root / path).unlink(missing_ok=True)
        folders.add((zone.root / path).parent)
        removed += 1
    for folder in folders:
        _remove_empty(zone.root, folder)
    forget_study(zone.root, claim.subject_id)
    with writing(zone.engine) as session:
        session.get_one(ClinicalJob, claim.row_id).progress = {"files": removed}
        session.flush()
        claim.finish(session)
    _LOG.info(ERASED, job_id=claim.row_id, files=removed)


def _is_ours(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) > 1 and parts[0] in FOLDERS and ".." not in parts


def _pointed_to(zone: ClinicalZone, paths: Sequence[str]) -> set[str]:
    found: set[str] = set()
    with reading(zone.engine) as session:
        for start in range(0, len(paths), 500):
            chunk = paths[start : start + 500]
            ids = [PurePosixPath(path).stem for path in chunk]  # an instance's file has its row's id
            found.update(session.scalars(select(Instance.path).where(Instance.id.in_(ids))))
            found.update(session.scalars(select(Result.path).where(Result.path.in_(chunk))))
    return found


def _remove_empty(root: Path, folder: Path) -> None:
    """Remove a folder and those above it, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder.parent != root:
            folder.rmdir()
            folder = folder.parent
