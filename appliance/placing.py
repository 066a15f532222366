"""Files of received instances in their place: linked from the inbox, found before any row speaks of them."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Final

from dicom_node.inbox import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder two levels below the root, durably."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for parent in (folder.parent, folder.parent.parent, root):
        sync_folder(parent)


def link(source: Path, target: Path) -> None:
    """Let a file be found under a second name, as a copy where the file system has no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary = target.with_suffix(".tmp")
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
