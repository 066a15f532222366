"""A process that de-identifies one file after the other: ``python -m anonymizer.batch.worker FD``.

It reads the source through a read-only map, so that its memory does not grow with native pixel data, and
writes a file of its own in the staging folder; the run puts that in its place. When the run dies, it ends at
once.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import secrets
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anonymizer.batch import dicomdir, sources
from anonymizer.batch.below import digest_below, open_file_below
from anonymizer.batch.hashes import keyed_hash
from anonymizer.batch.messages import (
    FAILED,
    FATAL,
    LOOKED,
    QUARANTINED,
    RELEASED,
    SAME,
    SKIPPED,
    Answer,
    Known,
    Task,
)
from anonymizer.batch.serial import Remembered
from anonymizer.engine import Context, Quarantined, Released, deidentify_file
from anonymizer.errors import AnonymizerError
from anonymizer.faces.series import series_of

if TYPE_CHECKING:
    from anonymizer.batch.messages import Series
    from anonymizer.faces.series import Faces

_OF_OUT: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOENT, errno.EACCES, errno.EPERM}
)
"""Errors of the new file: the source is open already."""
_ONE_FILE_ALONE: Final = frozenset({errno.EFBIG})  # a bound on one file's size; others may still fit


@dataclass(frozen=True)
class Setting:
    """What a process is told once: folders as open descriptors, and how to de-identify.

    Attributes
    ----------
    source, target, staging : int
        IN, OUT, and where new files wait; descriptors of folders.
    prefix : str
        What the names of new files hold.
    output : tuple of str
        Where the one output goes; empty when its identifiers name it.
    secret : bytes
        Key of the hash by which a source is known again.
    """

    source: int
    target: int
    staging: int
    context: Context
    secret: bytes
    prefix: str
    output: tuple[str, ...] = ()


class _WriteError(Exception):
    """The new file cannot be written; holds the operating system's error."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno)
        self.error = error


def answer(task: Task, setting: Setting, remembered: Remembered) -> Answer:
    """De-identify one file; whatever happens becomes an answer."""
    try:
        return _answer(task, setting, remembered.of(task.series))
    except _WriteError as error:
        code = FAILED if error.error.errno in _ONE_FILE_ALONE else FATAL
        reason = f"OUT cannot be written ({error.error.strerror})"
        return Answer(task.number, code, "unwritable", reason)
    except OSError as error:
        return Answer(task.number, FAILED, sources.UNREADABLE, f"cannot be read ({error.strerror or error})")
    except MemoryError:
        return Answer(task.number, FAILED, "too_large", "the memory does not suffice for this file")
    except Exception as error:  # noqa: BLE001 - the edge of the process; class and place, no value
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        return Answer(task.number, FAILED, "internal_error", f"the anonymizer failed on this file ({where})")


def _answer(task: Task, setting: Setting, faces: Faces | None) -> Answer:
    descriptor, status = open_file_below(setting.source, task.parts)
    try:
        if status.st_size == 0:
            return Answer(task.number, SKIPPED, "not_dicom", "an empty file")
        content = memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ))
        named = Answer(
            task.number,
            SAME,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            series=_name(task.series),
        )
        if task.look:
            return _looked(named, content, setting)
        known = task.known if task.known is not None and task.known.series == named.series else None
        if known is not None and _is_untouched(known, status):
            named = replace(named, content=known.content)
        else:
            named = replace(named, content=keyed_hash(setting.secret, content))
        if known is not None and known.content == named.content and _still_there(known, setting.target):
            return named
        made = _made(
            task, named, content, descriptor, replace(setting, context=_seeing(setting.context, faces))
        )
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            _discard(made.staged, setting.staging)
            return Answer(task.number, FAILED, "changed", "the file changed while it was read")
        return made
    finally:
        os.close(descriptor)


def _name(series: Series | None) -> str:
    return "" if series is None else series.name


def _seeing(context: Context, faces: Faces | None) -> Context:
    return context if faces is None else replace(context, faces=faces)


def _looked(named: Answer, content: memoryview, setting: Setting) -> Answer:
    uid = series_of(content, setting.context.max_inflated_bytes)
    hashed = keyed_hash(setting.secret, uid.encode("ascii", "replace")) if uid else ""
    return replace(named, outcome=LOOKED, series=hashed)


def _is_untouched(known: Known, status: os.stat_result) -> bool:
    return (known.size_bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _still_there(known: Known, target: int) -> bool:
    if not known.output:
        return True
    try:
        return digest_below(target, known.output) == known.sha256
    except OSError:
        return False


def _made(task: Task, named: Answer, content: memoryview, descriptor: int, setting: Setting) -> Answer:
    if dicomdir.is_dicomdir(content):
        return _directory(task, named, content, setting.source)
    outcome = _stage(descriptor, setting)
    if isinstance(outcome, Quarantined):
        kind = SKIPPED if outcome.reason_code in sources.SKIPPED else QUARANTINED
        return replace(named, outcome=kind, code=outcome.reason_code, reason=outcome.reason)
    released, staged = outcome
    return replace(
        named,
        outcome=RELEASED,
        staged=staged,
        output=setting.output or _place(released),
        sop_instance_uid=released.sop_instance_uid,
        sha256=released.sha256,
    )


def _directory(task: Task, named: Answer, content: memoryview, source: int) -> Answer:
    try:
        found = dicomdir.references(content)
    except AnonymizerError as error:
        reason = f"a directory of a medium that cannot be read; what lies beside it is taken ({error})"
        return replace(named, outcome=SKIPPED, code=sources.DICOMDIR, reason=reason)
    absent = sources.missing(source, task.parts[:-1], found)
    return replace(
        named,
        outcome=SKIPPED,
        code=sources.DICOMDIR,
        reason=sources.DICOMDIR_REASON,
        missing=tuple((each.relative, each.code, each.reason) for each in absent),
    )


def _place(released: Released) -> tuple[str, ...]:
    folders = (released.pseudonym, released.study_instance_uid, released.series_instance_uid)
    return (*folders, f"{released.sop_instance_uid}.dcm")


def _stage(descriptor: int, setting: Setting) -> tuple[Released, str] | Quarantined:
    """De-identify into a new file and make it durable; return what it is and its name."""
    name = f".{setting.prefix}{secrets.token_hex(8)}.part"
    try:
        # By descriptors: whatever happens to the folders meanwhile, these are the files.
        source, target = Path(f"/proc/self/fd/{descriptor}"), Path(f"/proc/self/fd/{setting.staging}/{name}")
        outcome = deidentify_file(source, target, setting.context)
        if isinstance(outcome, Quarantined):
            return outcome
        written, _ = open_file_below(setting.staging, [name])
        try:
            os.fsync(written)
        finally:
            os.close(written)
    except OSError as error:
        _discard(name, setting.staging)
        if error.errno in _OF_OUT:
            raise _WriteError(error) from error
        raise
    return outcome, name


def _discard(name: str, staging: int) -> None:
    if name:
        try:
            os.unlink(name, dir_fd=staging)
        except OSError:
            return  # it was not made


def serve(connection: Connection) -> None:
    """Answer tasks until the run closes the connection."""
    setting: Setting = connection.recv()
    remembered = Remembered(setting.source, setting.context.max_inflated_bytes)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the run is over or dead: nobody waits for what is in the making

    threading.Thread(target=listen, daemon=True).start()
    while True:
        connection.send_bytes(answer(tasks.get(), setting, remembered).encode())


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
