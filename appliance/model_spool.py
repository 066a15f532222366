"""The spool through which model packages come in: what is new there, and what happened to it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK: Final = 1 << 20
_MAX_ARRIVALS: Final = 20


@dataclass(frozen=True)
class Arrival:
    """A package in the spool, with its evaluation report when that lies beside it."""

    package: Path
    report: Path | None
    key: str  # changes whenever one of the two files does


def arrivals(spool: Path, memory: Path) -> Iterator[Arrival]:
    """Yield packages that were not dealt with yet, oldest name first; files being written begin with a dot.

    Parameters
    ----------
    spool : Path
        ``<name>.zip`` with ``<name>.json``.
    memory : Path
        Folder that remembers what was dealt with, since the spool may not be ours to empty.
    """
    if not spool.is_dir():
        return
    count = 0
    for package in sorted(spool.glob("*.zip")):
        if package.name.startswith("."):
            continue
        report = package.with_suffix(".json")
        found = report if report.is_file() and not report.is_symlink() else None
        key = hashlib.sha256(f"{_stamp(package)} {_stamp(found)}".encode()).hexdigest()
        if (memory / "seen" / key).exists():
            continue
        yield Arrival(package, found, key)
        count += 1
        if count == _MAX_ARRIVALS:
            return


def remember(memory: Path, arrival: Arrival) -> None:
    """Note that an arrival was dealt with."""
    folder = memory / "seen"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / arrival.key).touch(mode=0o600)


def forget(arrival: Arrival) -> None:
    """Remove an arrival from the spool where this process may; else its owner does."""
    for path in (arrival.package, arrival.report):
        if path is not None:
            with contextlib.suppress(PermissionError, FileNotFoundError, IsADirectoryError):
                path.unlink()


def file_sha256(path: Path, limit: int) -> str:
    """Return a hash that names a refused file: of its size and first ``limit`` bytes, else of its name."""
    digest = hashlib.sha256()
    descriptor = _open_plain(path)
    if descriptor is None:
        return hashlib.sha256(path.name.encode()).hexdigest()
    with os.fdopen(descriptor, "rb") as file:
        digest.update(str(os.fstat(file.fileno()).st_size).encode())
        left = limit
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def keep_refused(path: Path, root: Path, digest: str, limit: int) -> str:
    """Copy a refused package aside; return where, relative to the root, or nothing if it is not worth it."""
    descriptor = _open_plain(path)
    if descriptor is None:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            return ""
        target = root / "models" / "refused" / f"{digest}.zip"
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.open("wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
    return str(target.relative_to(root))


def _open_plain(path: Path) -> int | None:
    """Open a plain file without following a link or waiting for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _stamp(path: Path | None) -> str:
    if path is None:
        return "-"
    status = path.lstat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
