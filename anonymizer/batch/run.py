"""A run over a file or folder: order, records, and what happens when something goes wrong.

Files are de-identified side by side but take their place in the order of their paths, so that the outcome
does not depend on which process was faster: of two instances with one SOP Instance UID the first comes out.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from anonymizer.batch import placing, sources
from anonymizer.batch.below import contains, open_folder
from anonymizer.batch.crew import Crew
from anonymizer.batch.hashes import keyed_hash
from anonymizer.batch.journal import Journal, RefusedRunError
from anonymizer.batch.messages import (
    DUPLICATE,
    FAILED,
    FATAL,
    QUARANTINED,
    RELEASED,
    SAME,
    SKIPPED,
    Answer,
    Known,
    Task,
)
from anonymizer.batch.report import Entry, Report
from anonymizer.batch.serial import Gathered
from anonymizer.batch.worker import Setting
from anonymizer.options import Option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anonymizer.batch.sources import Source
    from anonymizer.engine import Context

_AHEAD: Final = 16  # files per process that may wait for an earlier one
_BLOCKED: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
_INTERRUPTED: Final = "interrupted"


class _StopError(Exception):
    """OUT takes no more; the message says why."""


@dataclass(frozen=True)
class _Claim:
    """Whose instance a SOP Instance UID of OUT is."""

    source: str
    sha256: str


def deidentify_tree(
    source: Path,
    target: Path,
    context: Context,
    *,
    jobs: int = 1,
    resumable: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    on_end: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """De-identify a file, a folder, or the files that a DICOMDIR refers to.

    Outputs of a folder are named by what is new of them: OUT/PSEUDONYM/STUDY/SERIES/INSTANCE.dcm. Nothing is
    written outside ``target``, no symbolic link is followed in either, and no file is ever replaced.

    Parameters
    ----------
    source : Path
        IN; never changed.
    target : Path
        OUT: a folder, made when missing; or a file when ``source`` is one.
    context : Context
        Keys, project and profile.
    jobs : int
        Number of processes.
    resumable : bool
        Whether a later run with the same keys may go on. Only sensible with keys that are kept.
    on_progress : callable
        Called with the number of files done, and of all.
    on_end : callable
        Called with the report, also when the run ends early by ``KeyboardInterrupt``.

    Raises
    ------
    RefusedRunError
        If IN and OUT overlap, or OUT holds a run with other parameters or one that is at work.
    OSError
        If IN cannot be read or OUT cannot be made.
    """
    if contains(source, target) or contains(target, source):
        raise RefusedRunError("OUT: expected a folder or file outside IN, and IN outside OUT")
    root, found = sources.find(source)
    as_file = not source.is_dir() and not target.is_dir() and not any(each.code for each in found)
    folder = target.parent if as_file else target
    with ExitStack() as stack:
        source_root = _opened(stack, root)
        folder.mkdir(parents=True, exist_ok=True)
        target_root = _opened(stack, folder)
        parameters = parameters_of(context, resumable=resumable)
        journal = None if as_file else stack.enter_context(Journal(target_root, parameters))
        setting = Setting(
            source=source_root,
            target=target_root,
            staging=target_root if journal is None else journal.staging,
            context=context,
            secret=path_secret(context),
            prefix=f"cloister-{secrets.token_hex(6)}-",
            output=(target.name,) if as_file else (),
        )
        run = _Run(setting, found, journal, on_progress)
        stopped = _INTERRUPTED
        try:
            stopped = run.go(min(jobs, max(len(found), 1)))
        finally:
            placing.sweep(setting.staging, setting.prefix)
            report = Report(parameters, tuple(run.entries), stopped)
            on_end(report)
    return report


def _opened(stack: ExitStack, folder: Path) -> int:
    descriptor = open_folder(folder)
    stack.callback(os.close, descriptor)
    return descriptor


def path_secret(context: Context) -> bytes:
    """Return the key of the hashes that stand for source paths."""
    return bytes.fromhex(keyed_hash(context.keys.uid, b"cloister deidentify sources"))


def parameters_of(context: Context, *, resumable: bool) -> dict[str, Any]:
    """Return what decides about the outputs of a run; the key's name tells nothing of the key."""
    try:
        version = metadata.version("cloister")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "version": version,
        "profile": {"name": context.profile.name, "hash": context.profile.hash},
        "project": context.project,
        "key_id": keyed_hash(context.keys.uid, b"cloister deidentify key id")[:16],
        "max_date_shift_days": context.max_date_shift_days,
        "resumable": resumable,
    }


class _Run:
    """One run: hands out files, and puts what comes back in its place, in order."""

    def __init__(
        self,
        setting: Setting,
        found: list[Source],
        journal: Journal | None,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._setting, self._found, self._journal = setting, found, journal
        self._on_progress = on_progress
        self._keys = [keyed_hash(setting.secret, os.fsencode(each.relative)) for each in found]
        self._known = {} if journal is None else journal.known
        self._claims = {
            known.sop_instance_uid: _Claim(key, known.sha256)
            for key, known in self._known.items()
            if known.outcome == RELEASED
        }
        self.entries: list[Entry] = []
        self._series = Gathered((), (), setting.secret)

    def go(self, jobs: int) -> str:
        """Work through all files; return why it ended early, or an empty text."""
        crew = Crew(self._setting, jobs)
        try:
            if Option.CLEAN_FACES in self._setting.context.profile.options:
                self._series = self._gathered(crew, jobs * _AHEAD)
            for number, answer in enumerate(self._in_order(crew, jobs * _AHEAD)):
                self._settle(self._found[number], self._keys[number], answer)
                self._on_progress(number + 1, len(self._found))
        except _StopError as error:
            return str(error)
        finally:
            crew.close()
        return ""

    def _gathered(self, crew: Crew, ahead: int) -> Gathered:
        """Have every file looked at, so that those of a series are known before the first of them."""
        looks = [
            Task(number, tuple(source.relative.split("/")), look=True)
            for number, source in enumerate(self._found)
            if not source.code
        ]
        answers: list[Answer] = []
        for begin in range(0, len(looks), ahead):
            for task in looks[begin : begin + ahead]:
                crew.add(task)
            while crew.outstanding:
                answers += crew.answers()
        return Gathered(looks, answers, self._setting.secret)

    def _in_order(self, crew: Crew, ahead: int) -> Iterator[Answer]:
        answers: dict[int, Answer] = {}
        handed = 0
        for number in range(len(self._found)):
            while number not in answers:
                while handed < min(len(self._found), number + ahead):
                    task = self._task(handed)
                    if isinstance(task, Answer):
                        answers[handed] = task
                    else:
                        crew.add(task)
                    handed += 1
                if crew.outstanding and number not in answers:
                    answers.update((answer.number, answer) for answer in crew.answers())
            yield answers.pop(number)

    def _task(self, number: int) -> Task | Answer:
        source = self._found[number]
        if source.code:
            kind = SKIPPED if source.code in sources.SKIPPED else FAILED
            return Answer(number, kind, source.code, source.reason)
        known = self._known.get(self._keys[number])
        return Task(number, tuple(source.relative.split("/")), known, self._series.of(number))

    def _settle(self, source: Source, key: str, answer: Answer) -> None:
        """Give an answer its place in OUT, in the record and in the report."""
        if answer.outcome == FATAL:
            raise _StopError(answer.reason)
        known = self._known.get(key)
        if answer.outcome == SAME and known is not None:
            self._record(key, replace(known, size_bytes=answer.size_bytes, mtime_ns=answer.mtime_ns), known)
            self.entries.append(
                _entry(source, known.outcome, known.output, known.sha256, known.code, known.reason)
            )
            return
        if answer.outcome == RELEASED:
            answer = self._placed(key, answer)
        if answer.outcome in {RELEASED, DUPLICATE} or (answer.outcome == QUARANTINED and not answer.output):
            self._record(key, _known(answer))
        output = answer.output if answer.outcome in {RELEASED, DUPLICATE} else ()
        digest = answer.sha256 if output else ""
        self.entries.append(_entry(source, answer.outcome, output, digest, answer.code, answer.reason))
        self.entries += [
            Entry(name, FAILED, code=code, reason=reason) for name, code, reason in answer.missing
        ]

    def _placed(self, key: str, answer: Answer) -> Answer:
        """Put a new file in its place, or say why it cannot be there."""
        claim = self._claims.get(answer.sop_instance_uid)
        if claim is not None and claim.source != key and claim.sha256 != answer.sha256:
            placing.discard(self._setting.staging, answer.staged)
            reason = "another instance with this SOPInstanceUID (0008,0018) and other content came before"
            return replace(answer, outcome=QUARANTINED, code="same_sop_instance_uid", reason=reason)
        try:
            there = placing.place(
                self._setting.staging, answer.staged, self._setting.target, answer.output, answer.sha256
            )
        except OSError as error:
            if error.errno not in _BLOCKED:
                raise _StopError(f"OUT cannot be written ({error.strerror})") from error
            reason = "a part of the way below OUT is a link or a file; expected folders"
            return replace(answer, outcome=FAILED, code="output_blocked", reason=reason)
        if not there:
            reason = "another file lies where this instance belongs in OUT; nothing is ever replaced"
            return replace(answer, outcome=QUARANTINED, code="output_exists", reason=reason)
        if claim is not None and claim.source != key:
            reason = "an instance of the same content came before"
            return replace(answer, outcome=DUPLICATE, code="same_instance", reason=reason)
        self._claims[answer.sop_instance_uid] = _Claim(key, answer.sha256)
        return answer

    def _record(self, key: str, known: Known, before: Known | None = None) -> None:
        if self._journal is None or known == before:
            return
        try:
            self._journal.add(key, known)
        except OSError as error:
            raise _StopError(f"OUT cannot be written ({error.strerror})") from error


def _known(answer: Answer) -> Known:
    return Known(
        size_bytes=answer.size_bytes,
        mtime_ns=answer.mtime_ns,
        content=answer.content,
        outcome=answer.outcome,
        code=answer.code,
        reason=answer.reason,
        output=answer.output,
        sop_instance_uid=answer.sop_instance_uid,
        sha256=answer.sha256,
        series=answer.series,
    )


def _entry(
    source: Source, outcome: str, output: tuple[str, ...], digest: str, code: str, reason: str
) -> Entry:
    return Entry(source.relative, outcome, "/".join(output), digest, code, reason)
