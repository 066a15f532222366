"""The list that travels with shared studies: which files, for whom, on what grounds; its hash names it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from appliance.consortium.errors import ConsortiumError
from appliance.federation.joincode import SITE_NAME

FORMAT: Final = "cloister-share-1"
MAX_BYTES: Final = 256 * 2**20
MAX_FILES: Final = 1_000_000
MAX_FILE_BYTES: Final = 8 * 2**30
MAX_TEXT: Final = 200
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class ManifestError(ConsortiumError):
    """A list that is none; the message names the place, never the value."""


@dataclass(frozen=True)
class SharedFile:
    """One de-identified instance: SHA-256 and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class SharedLabel:
    """A label of a subject, or of one of its studies where that is not empty."""

    patient_id: str
    study_instance_uid: str
    label: str
    value: int


@dataclass(frozen=True)
class Manifest:
    """What is shared. Subjects and studies bear the pseudonyms and UIDs of the giver's research zone."""

    giver: str
    receiver: str
    ethics_number: str
    purpose: str
    at: str
    studies: int
    subjects: int
    files: tuple[SharedFile, ...]
    labels: tuple[SharedLabel, ...]

    @property
    def text(self) -> bytes:
        """The canonical text, of which the ledger names the SHA-256."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)


def check_texts(**texts: str) -> None:
    """Raise ManifestError for terms that are empty, long or not printable."""
    for name, text in texts.items():
        if not text.strip() or len(text) > MAX_TEXT or not text.isprintable():
            raise ManifestError(f"{name}: expected 1 to {MAX_TEXT} printable characters")


def read(text: bytes) -> Manifest:
    """Read a list as the hostile input it is.

    Raises
    ------
    ManifestError
        If it is not the canonical text of a list.
    """
    if len(text) > MAX_BYTES:
        raise ManifestError(f"list of files: expected at most {MAX_BYTES} bytes")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError("list of files: expected JSON") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ManifestError(f"list of files: expected the format {FORMAT}")
    _names(Manifest, content, "list of files")
    content["files"] = tuple(_file(one) for one in _list(content, "files", MAX_FILES))
    content["labels"] = tuple(_label(one) for one in _list(content, "labels", MAX_FILES))
    found = Manifest(**content)
    _check(found)
    if found.text != text:
        raise ManifestError("list of files: expected its canonical text")
    return found


def _check(found: Manifest) -> None:
    for name in ("giver", "receiver"):
        _match(getattr(found, name), SITE_NAME, name)
    for name in ("ethics_number", "purpose", "at"):
        if not isinstance(getattr(found, name), str):
            raise ManifestError(f"{name}: expected a text")
        check_texts(**{name: getattr(found, name)})
    for name in ("studies", "subjects"):
        _count(getattr(found, name), name, 1, len(found.files))
    if len({one.sha256 for one in found.files}) != len(found.files):
        raise ManifestError("files: expected each once")


def _file(value: object) -> SharedFile:
    read_file = SharedFile(**_names(SharedFile, value, "files"))
    _match(read_file.sha256, _HASH, "files: sha256")
    _count(read_file.size, "files: size", 1, MAX_FILE_BYTES)
    return read_file


def _label(value: object) -> SharedLabel:
    label = SharedLabel(**_names(SharedLabel, value, "labels"))
    for text in (label.patient_id, label.study_instance_uid, label.label):
        if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable() or "\\" in text:
            raise ManifestError("labels: expected short printable texts")
    _count(label.value, "labels: value", 0, 1)
    return label


def _names(kind: type[Any], value: object, where: str) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise ManifestError(f"{where}: expected objects of {', '.join(sorted(names))}")
    return value


def _list(content: dict[str, Any], name: str, most: int) -> list[Any]:
    value = content[name]
    if not isinstance(value, list) or len(value) > most:
        raise ManifestError(f"{name}: expected a list of at most {most}")
    return value


def _match(value: object, pattern: re.Pattern[str], where: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ManifestError(f"{where}: expected a text of the form {pattern.pattern}")


def _count(value: object, where: str, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ManifestError(f"{where}: expected a whole number from {least} to {most}")
