"""What the disk allows a receiver that keeps its promise: files are written, synchronised and renamed."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from dicom_node.inbox import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES: Final = 1 << 18


def durable_per_s(folder: Path, size_bytes: int, count: int, writers: int) -> float:
    """Return how many files a second become durable.

    Parameters
    ----------
    folder : Path
        An empty folder on the disk in question; the files stay there.
    size_bytes, count : int
        Length and number of the files.
    writers : int
        How many write at once; each synchronises file and folder before its next file.
    """
    incoming, entries = folder / "incoming", folder / "entries"
    incoming.mkdir()
    entries.mkdir()
    block = np.random.default_rng(3).bytes(min(size_bytes, _BLOCK_BYTES))

    def write(writer: int) -> None:
        for number in range(writer, count, writers):
            path = incoming / str(number)
            with path.open("wb", buffering=0) as file:
                for start in range(0, size_bytes, len(block)):
                    file.write(block[: size_bytes - start])
                os.fsync(file.fileno())
            sync_folder(incoming)
            path.rename(entries / path.name)

    os.sync()
    started = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    seconds = time.perf_counter() - started
    return count / seconds
