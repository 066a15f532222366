"""A finished file takes its place in OUT; what is there already stays."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from anonymizer.batch.below import digest_below, open_folder_below

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def place(staging: int, name: str, root: int, parts: Sequence[str], digest: str) -> bool:
    """Move a staged file below OUT; return whether it, or a file of the same content, is there now.

    Parameters
    ----------
    staging, name : int, str
        The folder's descriptor, and the file; it is gone afterwards.
    root, parts : int, sequence of str
        OUT's descriptor, and where below.
    digest : str
        The file's SHA-256.

    Raises
    ------
    OSError
        If it cannot be placed, among others because a part of the way is a symbolic link (not followed).
    """
    try:
        folder = open_folder_below(root, parts[:-1], make=True)
        try:
            _link(staging, name, folder, parts[-1])
        finally:
            os.close(folder)
    except FileExistsError:
        return _is_same(root, parts, digest)
    finally:
        discard(staging, name)
    return True


def discard(staging: int, name: str) -> None:
    """Remove a staged file, if it is there."""
    try:
        os.unlink(name, dir_fd=staging)
    except FileNotFoundError:
        return


def sweep(staging: int, prefix: str) -> None:
    """Remove staged files, named by what their names hold, of which nobody will make anything."""
    for name in os.listdir(staging):
        if prefix in name:
            discard(staging, name)


def _link(staging: int, name: str, folder: int, final: str) -> None:
    """Give the file its final name, never in place of another one."""
    try:
        os.link(name, final, src_dir_fd=staging, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            os.stat(final, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, final, src_dir_fd=staging, dst_dir_fd=folder)
        else:
            raise FileExistsError from error


def _is_same(root: int, parts: Sequence[str], digest: str) -> bool:
    try:
        return digest_below(root, parts) == digest
    except OSError:
        return False
