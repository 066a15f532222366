"""Whole series in a run: which files belong together, and what a process remembers of them."""

from __future__ import annotations

import json
import mmap
import os
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from anonymizer.batch.below import open_file_below
from anonymizer.batch.hashes import keyed_hash
from anonymizer.batch.messages import LOOKED, Series
from anonymizer.faces.series import Faces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anonymizer.batch.messages import Answer, Task
    from anonymizer.elements import Bytes

_KEPT: Final = 4


class Gathered:
    """The files of each series, as the run's processes found them."""

    def __init__(self, tasks: Iterable[Task], answers: Iterable[Answer], secret: bytes) -> None:
        parts = {task.number: task.parts for task in tasks}
        members: defaultdict[str, list[tuple[tuple[str, ...], int, int]]] = defaultdict(list)
        named: dict[int, str] = {}
        for answer in sorted(answers, key=lambda each: each.number):
            if answer.outcome == LOOKED and answer.series:
                members[answer.series].append((parts[answer.number], answer.size_bytes, answer.mtime_ns))
                named[answer.number] = answer.series
        series = {
            name: Series(
                tuple(each[0] for each in found),
                keyed_hash(secret, json.dumps(sorted(found)).encode("ascii")),
            )
            for name, found in members.items()
        }
        self._of = {number: series[name] for number, name in named.items()}

    def of(self, number: int) -> Series | None:
        """Return the series of a source; None when it is no image of one."""
        return self._of.get(number)


class Remembered:
    """What a process knows of the series that it met last."""

    def __init__(self, source: int, max_inflated_bytes: int) -> None:
        self._source = source
        self._max_inflated_bytes = max_inflated_bytes
        self._known: OrderedDict[str, Faces] = OrderedDict()

    def of(self, series: Series | None) -> Faces | None:
        """Return what finds the faces of a series."""
        if series is None:
            return None
        if series.name not in self._known:
            files = [partial(_opened, self._source, parts) for parts in series.files]
            self._known[series.name] = Faces(files, max_inflated_bytes=self._max_inflated_bytes)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(series.name)
        return self._known[series.name]


@contextmanager
def _opened(source: int, parts: tuple[str, ...]) -> Iterator[Bytes]:
    descriptor, status = open_file_below(source, parts)
    try:
        if status.st_size == 0:
            yield b""
            return
        # Not closed here: values are views into it, and it goes with the last of them.
        yield memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
