"""Search files for planted identifying values, byte by byte, whatever the files are.

Each value is sought as UTF-8, Latin-1 and UTF-16, as JSON escapes it, as percent-encoded text, in base64, and
as its MD5, SHA-1 and SHA-256 in hexadecimal, in whatever case ASCII letters are; zip archives and gzip files
are opened. A pattern that begins or ends with a digit does not match inside a longer number.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import urllib.parse
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MINIMUM_LENGTH: Final = 5
_HEAD: Final = 5  # bytes by which candidates are found
_CHUNK: Final = 1 << 24
_MAX_ARCHIVE_DEPTH: Final = 3
_DIGITS: Final = frozenset(b"0123456789")
_ALPHANUMERIC: Final = _DIGITS | frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER: Final = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
_LOWER_TABLE: Final = np.frombuffer(_LOWER, dtype=np.uint8)


class LeakSearchError(Exception):
    """A value is too short to be searched."""


@dataclass(frozen=True)
class Leak:
    """One planted value found: in which file, at which byte; ``value`` is an index into the sorted values."""

    path: str
    offset: int
    value: int


class LeakSearch:
    """A search for many values at once.

    Parameters
    ----------
    values : iterable of str
        Planted values, each of at least five characters.
    whole_words : bool
        Find a value only where neither letter nor digit is next to it: for values that nobody invented to
        be like nothing else.
    """

    def __init__(self, values: Iterable[str], *, whole_words: bool = False) -> None:
        self._joining = _ALPHANUMERIC if whole_words else _DIGITS
        self.values = tuple(sorted(set(values)))
        short = [value for value in self.values if len(value) < MINIMUM_LENGTH]
        if short:
            raise LeakSearchError(f"{len(short)} value(s) are shorter than {MINIMUM_LENGTH} characters")
        self._patterns: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
        for index, value in enumerate(self.values):
            for pattern in set(_forms(value)):
                self._patterns[pattern[:_HEAD]].append((pattern, index))
        self._longest = max((len(p) for found in self._patterns.values() for p, _ in found), default=_HEAD)
        self._first = np.zeros(1 << 24, dtype=np.bool_)
        self._last = np.zeros(1 << 24, dtype=np.bool_)
        for head in self._patterns:
            self._first[int.from_bytes(head[:3], "big")] = True
            self._last[int.from_bytes(head[2:5], "big")] = True

    def files(self, roots: Iterable[Path]) -> tuple[list[Leak], int, int]:
        """Search every file under the folders.

        Returns
        -------
        tuple
            Leaks found, files read, bytes read (contents of archives included).
        """
        leaks: list[Leak] = []
        count = size = 0
        for path in _walk(roots):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # a live node removes its own temporary files
            count += 1
            for name, part in _parts(str(path), content, 0):
                size += len(part)
                leaks.extend(self._search(name, part))
            leaks.extend(self._search(f"{path} (its name)", str(path.name).encode()))
        return leaks, count, size

    def _search(self, name: str, content: bytes) -> Iterator[Leak]:
        for start in range(0, max(len(content), 1), _CHUNK):
            chunk = content[start : start + _CHUNK + self._longest]
            lowered = chunk.translate(_LOWER)
            for at in self._candidates(np.frombuffer(lowered, dtype=np.uint8)):
                if at >= _CHUNK:
                    break
                for pattern, value in self._patterns.get(lowered[at : at + _HEAD], ()):
                    if lowered.startswith(pattern, at) and _stands_alone(
                        content, start + at, pattern, self._joining
                    ):
                        yield Leak(name, start + at, value)

    def _candidates(self, data: NDArray[np.uint8]) -> list[int]:
        if data.size < _HEAD:
            return []
        wide = data.astype(np.uint32)
        grams = (wide[:-2] << 16) | (wide[1:-1] << 8) | wide[2:]
        hits: NDArray[np.intp] = np.flatnonzero(self._first[grams[:-2]] & self._last[grams[2:]])
        return [int(hit) for hit in hits]


def _forms(value: str) -> Iterator[bytes]:
    """Yield how a value can stand in a file, in ASCII lower case."""
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        try:
            yield value.encode(encoding).translate(_LOWER)
        except UnicodeEncodeError:
            continue
    yield json.dumps(value)[1:-1].encode().translate(_LOWER)
    yield urllib.parse.quote(value).encode().translate(_LOWER)
    raw = value.encode()
    for skipped in range(3):  # at each alignment, without the ends that depend on neighbours
        code = base64.b64encode(b"\0" * skipped + raw)
        inner = code[4 if skipped else 0 : -4]
        if len(inner) >= 8:
            yield inner.translate(_LOWER)
    for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
        yield digest(raw, usedforsecurity=False).hexdigest().encode()


def _stands_alone(content: bytes, at: int, pattern: bytes, joining: frozenset[int]) -> bool:
    """Whether the pattern is not a part of a longer number (or word) there."""
    after = at + len(pattern)
    if pattern[0] in joining and at > 0 and content[at - 1] in joining:
        return False
    return not (pattern[-1] in joining and after < len(content) and content[after] in joining)


def _walk(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        elif root.is_dir():
            yield from sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _parts(name: str, content: bytes, depth: int) -> Iterator[tuple[str, bytes]]:
    """Yield a file's content and, when it is an archive, that of its members."""
    yield name, content
    if depth >= _MAX_ARCHIVE_DEPTH:
        return
    if content[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if not member.flag_bits & 1:  # encrypted members have no key here
                    yield from _parts(f"{name}:{member.filename}", archive.read(member), depth + 1)
    elif content[:2] == b"\x1f\x8b":
        try:
            yield from _parts(f"{name}:", gzip.decompress(content), depth + 1)
        except (OSError, EOFError, zlib.error):
            return
