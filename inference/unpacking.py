"""Get the four files of a package out of a folder or zip that nobody vouches for yet."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from typing import TYPE_CHECKING, Final

from inference.errors import PackageError
from inference.package import FILES, Limits, read_limited

if TYPE_CHECKING:
    from pathlib import Path

_ZIP_ERRORS: Final = (
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError,
    KeyError, OverflowError,
)  # fmt: skip


def unpack(source: Path, target: Path, limits: Limits) -> None:
    """Copy exactly the four files into an empty folder, none larger than allowed.

    Parameters
    ----------
    source : Path
        Folder or zip file.
    target : Path
        Exists and is empty.
    limits : Limits
        Sizes are counted while reading; what an archive says of itself is not believed.

    Raises
    ------
    PackageError
        ``package.files``, ``package.size`` or ``package.zip``.
    """
    if source.is_dir() and not source.is_symlink():
        _from_folder(source, target, limits)
    else:
        _from_zip(source, target, limits)


def _from_folder(source: Path, target: Path, limits: Limits) -> None:
    _check_names(sorted(entry.name for entry in _entries(source)))
    for name in FILES:
        (target / name).write_bytes(read_limited(source / name, limits.of(name)))


def _entries(source: Path) -> list[os.DirEntry[str]]:
    found = []
    with os.scandir(source) as entries:
        for entry in entries:
            found.append(entry)
            if len(found) > len(FILES):
                break
    return found


def _from_zip(source: Path, target: Path, limits: Limits) -> None:
    try:
        status = source.lstat()
    except OSError as error:
        raise PackageError("package.files", "no such package") from error
    if not stat.S_ISREG(status.st_mode):
        raise PackageError("package.files", "expected a folder or a zip file")
    if status.st_size > limits.max_archive_bytes:
        raise PackageError("package.size", f"expected an archive of at most {limits.max_archive_bytes} bytes")
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            _check_names(sorted(member.orig_filename for member in members))
            for member in members:
                _extract(archive, member, target / member.filename, limits.of(member.filename))
    except _ZIP_ERRORS as error:
        raise PackageError("package.zip", f"not a readable zip archive ({type(error).__name__})") from error


def _check_names(names: list[str]) -> None:
    """Also what stops path traversal: no other name is ever joined to a path."""
    if names != sorted(FILES):
        raise PackageError("package.files", f"expected exactly {', '.join(sorted(FILES))}")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, limit: int) -> None:
    mode = member.external_attr >> 16
    if member.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)) or member.flag_bits & 0x1:
        raise PackageError("package.files", f"{member.filename}: expected a plain file")
    if member.file_size > limit:
        raise PackageError("package.size", f"{member.filename}: expected at most {limit} bytes")
    written = 0
    with archive.open(member) as source, target.open("xb") as file:
        while chunk := source.read(1 << 20):
            written += len(chunk)
            if written > limit:
                raise PackageError("package.size", f"{member.filename}: expected at most {limit} bytes")
            file.write(chunk)
