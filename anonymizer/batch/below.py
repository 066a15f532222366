"""Opening what lies below a folder, without a step through a symbolic link."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ_BYTES: Final = 1024**2


def open_folder(path: Path) -> int:
    """Open a folder that a person named; links on the way are that person's."""
    return os.open(path, _FOLDER)


def open_folder_below(root: int, parts: Sequence[str], *, make: bool = False) -> int:
    """Open a folder below another; what is missing is made when ``make``.

    Raises
    ------
    OSError
        If a part is missing, no folder, or a symbolic link.
    """
    current = os.dup(root)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=current)
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = inner
    except OSError:
        os.close(current)
        raise
    return current


def open_file_below(root: int, parts: Sequence[str]) -> tuple[int, os.stat_result]:
    """Open a regular file below a folder for reading.

    Raises
    ------
    OSError
        If it is missing, cannot be read, a part is a symbolic link, or it is no regular file.
    """
    folder = open_folder_below(root, parts[:-1])
    try:
        # Without O_NONBLOCK a pipe without a writer would wait for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor, status


def digest_below(root: int, parts: Sequence[str]) -> str:
    """Return the SHA-256 of a file below a folder; raises like :func:`open_file_below`."""
    descriptor, _ = open_file_below(root, parts)
    digest = sha256()
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def contains(folder: Path, path: Path) -> bool:
    """Tell whether a path leads into a folder (or is it), links followed."""
    return path.resolve().is_relative_to(folder.resolve())
