"""The crossing: bundles that the clinical zone writes and the research zone reads, whole or not at all.

A bundle is a folder of ``data_root/crossing/to_research`` named after its id: ``bundle.json`` and the files
it lists. It is written under a hidden name, synced, and renamed. An empty file of the bundle's name in
``to_clinical/acks`` says that the research zone has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from appliance.settings import Settings

INSTANCES: Final = "instances"
LABELS: Final = "labels"
MANIFEST: Final = "bundle.json"
FOLDER_MODE: Final = 0o750  # both zones are in the crossing's group, where each is a user of its own
FILE_MODE: Final = 0o640
SOCKET_MODE: Final = 0o660
MAX_MANIFEST_BYTES: Final = 256 * 2**20
_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_FILE: Final = re.compile(r"[0-9a-z]{1,40}\.dcm\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_UID: Final = re.compile(r"2\.25\.[0-9]{1,39}\Z")
_CLASS_UID: Final = re.compile(r"[0-9.]{1,64}\Z")
_PSEUDONYM: Final = re.compile(r"[A-Z2-7]{16,64}\Z")
_MODALITY: Final = re.compile(r"[\x20-\x7e]{0,16}\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_PROJECT: Final = re.compile(r"[A-Za-z0-9-]{1,40}\Z")


class BundleError(ApplianceError):
    """A bundle is not as it must be; the message names the field, never the value."""


@dataclass(frozen=True)
class InstanceItem:
    """One de-identified instance; all UIDs are mapped ones."""

    file: str
    sha256: str
    size_bytes: int
    pseudonym: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str


@dataclass(frozen=True)
class LabelItem:
    """One label; ``study_instance_uid`` is the mapped UID, or empty for all studies of the subject."""

    pseudonym: str
    study_instance_uid: str
    name: str
    value: int
    source: str


@dataclass(frozen=True)
class Bundle:
    """A bundle as read, every field checked; ``items`` are of one kind."""

    id: str
    kind: str
    project: str
    items: tuple[InstanceItem, ...] | tuple[LabelItem, ...]
    folder: Path


def make_folders(*folders: Path) -> None:
    """Make folders of the crossing; what others may do there is in the end the process's umask."""
    for folder in folders:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


class BundleWriter:
    """Collects the files of one bundle under a hidden name.

    Parameters
    ----------
    crossing_out : Path
        The spool.
    bundle_id : str
        32 hexadecimal digits. What an interrupted writer of the same bundle left is removed.
    """

    def __init__(self, crossing_out: Path, bundle_id: str) -> None:
        self._target = crossing_out / bundle_id
        self.folder = crossing_out / f".tmp-{bundle_id}"
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folders(self.folder)

    def publish(self, kind: str, project: str, items: Sequence[InstanceItem] | Sequence[LabelItem]) -> None:
        """Write the manifest, sync everything and rename; a bundle that is already there stays as it is."""
        content = {
            "id": self._target.name,
            "kind": kind,
            "project": project,
            "items": [asdict(item) for item in items],
        }
        (self.folder / MANIFEST).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        for path in self.folder.iterdir():
            _sync(path)
        _sync(self.folder)
        if self._target.exists():
            self.discard()
            return
        self.folder.rename(self._target)
        _sync(self._target.parent)

    def discard(self) -> None:
        """Remove what was collected."""
        shutil.rmtree(self.folder)


def write_bundle(
    settings: Settings, bundle_id: str, kind: str, project: str, items: Sequence[LabelItem]
) -> None:
    """Write a bundle that has no files beside its manifest."""
    BundleWriter(settings.crossing_out, bundle_id).publish(kind, project, items)


def bundle_ids(settings: Settings) -> list[str]:
    """Return the ids of the published bundles, sorted."""
    return sorted(path.name for path in settings.crossing_out.iterdir() if _ID.match(path.name))


def read_bundle(settings: Settings, bundle_id: str) -> Bundle:
    """Read and check a bundle's manifest; its files are checked when they are copied.

    Raises
    ------
    BundleError
        If anything in it is not as it must be.
    """
    folder = settings.crossing_out / bundle_id
    content = _manifest(folder / MANIFEST)
    _expect(content.get("id") == bundle_id, "id: expected the name of the folder")
    project = _text(content, "project", _PROJECT)
    items = content.get("items")
    if not isinstance(items, list):
        raise BundleError("items: expected a list")
    kind = content.get("kind")
    if kind == INSTANCES:
        return Bundle(bundle_id, INSTANCES, project, tuple(_instance(item) for item in items), folder)
    _expect(kind == LABELS, "kind: expected instances or labels")
    return Bundle(bundle_id, LABELS, project, tuple(_label(item) for item in items), folder)


def read_bundles(settings: Settings) -> Iterator[Bundle]:
    """Yield every published bundle; raises like :func:`read_bundle`."""
    for bundle_id in bundle_ids(settings):
        yield read_bundle(settings, bundle_id)


def acknowledge(settings: Settings, bundle_id: str) -> None:
    """Say that the research zone has the bundle."""
    folder = settings.crossing_in / "acks"
    make_folders(folder)
    path = folder / bundle_id
    if not path.exists():
        path.touch(mode=FILE_MODE)
        _sync(folder)


def forget_acknowledgements(settings: Settings) -> None:
    """Remove the acknowledgements of bundles that the clinical zone has removed since."""
    for path in (settings.crossing_in / "acks").glob("*"):
        if not (settings.crossing_out / path.name).exists():
            path.unlink(missing_ok=True)


def copy_verified(bundle: Bundle, item: InstanceItem, target: Path) -> None:
    """Copy a file of a bundle, hashing what is written; ``target`` appears whole or not at all.

    Raises
    ------
    BundleError
        If the file is missing, a link, or not the bytes that the manifest names.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    digest, size = sha256(), 0
    try:
        descriptor = os.open(bundle.folder / item.file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise BundleError(f"{item.file}: cannot be read ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "rb") as source, temporary.open("wb") as copy:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if (digest.hexdigest(), size) != (item.sha256, item.size_bytes):
            raise BundleError(f"{item.file}: not the bytes that the manifest names")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST}: larger than {MAX_MANIFEST_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise BundleError(f"{MANIFEST}: expected an object")
    return content


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise BundleError(message)


def _text(item: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = item.get(name)
    if not isinstance(value, str) or pattern.match(value) is None:
        raise BundleError(f"{name}: not as expected")
    return value


def _number(item: Mapping[str, Any], name: str, limit: int) -> int:
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise BundleError(f"{name}: expected a number from 0 to {limit}")
    return value


def _object(item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BundleError("items: expected objects")
    return item


def _instance(content: object) -> InstanceItem:
    item = _object(content)
    return InstanceItem(
        file=_text(item, "file", _FILE),
        sha256=_text(item, "sha256", _SHA256),
        size_bytes=_number(item, "size_bytes", 1 << 40),
        pseudonym=_text(item, "pseudonym", _PSEUDONYM),
        study_instance_uid=_text(item, "study_instance_uid", _UID),
        series_instance_uid=_text(item, "series_instance_uid", _UID),
        sop_instance_uid=_text(item, "sop_instance_uid", _UID),
        sop_class_uid=_text(item, "sop_class_uid", _CLASS_UID),
        modality=_text(item, "modality", _MODALITY),
    )


def _label(content: object) -> LabelItem:
    item = _object(content)
    return LabelItem(
        pseudonym=_text(item, "pseudonym", _PSEUDONYM),
        study_instance_uid=_text(item, "study_instance_uid", _UID) if item.get("study_instance_uid") else "",
        name=_text(item, "name", _NAME),
        value=_number(item, "value", 1),
        source=_text(item, "source", _NAME),
    )
