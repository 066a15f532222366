"""What IN holds: the files to take, and what is not taken, with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anonymizer.batch import dicomdir
from anonymizer.batch.below import open_file_below, open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MISSING: Final = "missing_file"
OUTSIDE: Final = "leads_outside"
LINK: Final = "link"
DICOMDIR: Final = "dicomdir"
NOT_A_FILE: Final = "not_a_file"
UNREADABLE: Final = "unreadable"
SKIPPED: Final = frozenset({DICOMDIR, LINK, NOT_A_FILE, "not_dicom"})
"""Codes of what holds no instance of its own, and is no failure."""
DICOMDIR_REASON: Final = "a directory of a medium; the files that it refers to are taken, itself never"


@dataclass(frozen=True, order=True)
class Source:
    """A file below IN; with a code it is not taken."""

    relative: str
    code: str = ""
    reason: str = ""


def find(source: Path) -> tuple[Path, list[Source]]:
    """Return the folder that relative paths start from, and what there is, sorted.

    Parameters
    ----------
    source : Path
        A folder, a file, or a DICOMDIR, which stands for the files that it refers to.

    Raises
    ------
    AnonymizerError
        If ``source`` is a DICOMDIR that cannot be read.
    OSError
        If ``source`` cannot be read.
    """
    resolved = source.resolve()
    if resolved.is_dir():
        return resolved, sorted(_walk(resolved, resolved, ()))
    folder = resolved.parent
    root = open_folder(folder)
    try:
        descriptor, _ = open_file_below(root, [resolved.name])
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(1024)
            if not dicomdir.is_dicomdir(content):
                return folder, [Source(resolved.name)]
            content += file.read()
        itself = Source(resolved.name, DICOMDIR, DICOMDIR_REASON)
        return folder, sorted({itself, *_referenced(root, (), dicomdir.references(content))})
    finally:
        os.close(root)


def missing(root: int, base: Sequence[str], found: Sequence[tuple[str, ...]]) -> list[Source]:
    """Return the references of a DICOMDIR in ``base`` that lead nowhere, or outside."""
    return [each for each in _referenced(root, base, found) if each.code]


def _referenced(root: int, base: Sequence[str], found: Sequence[tuple[str, ...]]) -> Iterator[Source]:
    for parts in found:
        if dicomdir.is_hostile(parts):
            name = "\\".join(parts)
            yield Source(name, OUTSIDE, "a DICOMDIR's reference: expected a file on the medium")
            continue
        place = dicomdir.locate(root, base, parts)
        if place is None:
            name = "/".join((*base, *parts))
            yield Source(name, MISSING, "a DICOMDIR refers to this file, which is not there")
        else:
            yield Source("/".join(place))


def _walk(root: Path, folder: Path, parts: tuple[str, ...]) -> Iterator[Source]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Source("/".join(parts), UNREADABLE, f"the folder cannot be read ({error.strerror})")
        return
    for entry in found:
        below = (*parts, entry.name)
        relative = "/".join(below)
        if entry.is_symlink():
            yield _link(root, folder / entry.name, relative)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(root, folder / entry.name, below)
        elif entry.is_file(follow_symlinks=False):
            yield Source(relative)
        else:
            yield Source(relative, NOT_A_FILE, "neither a file nor a folder")


def _link(root: Path, path: Path, relative: str) -> Source:
    try:
        goal = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return Source(relative, MISSING, "a symbolic link that leads nowhere")
    if goal.is_relative_to(root):
        return Source(relative, LINK, "a symbolic link to what is taken where it lies")
    return Source(relative, OUTSIDE, "a symbolic link that leads outside IN is not followed")
