"""Files as memory, without reading them whole."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anonymizer.elements import Bytes

SMALL_BYTES: Final = 4 * 1024**2


@contextmanager
def mapped(path: Path) -> Iterator[Bytes]:
    """Give a file's bytes: a small one read, a large one mapped.

    A file that somebody cuts off while it is mapped ends the process with SIGBUS; callers give files that
    nobody writes any more.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= SMALL_BYTES:
            yield file.read()
            return
        # Not closed here: values are views into it, and it goes with the last of them.
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
