"""Shared studies as one file that its receiver alone can open: tar in age, for the receiver's signing key.

The receiver's Ed25519 key is that of the consortium's ledger (:mod:`appliance.consortium.sealing`).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import pyrage

from appliance.consortium import manifest as manifests
from appliance.consortium import sealing
from appliance.consortium.errors import ConsortiumError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from appliance.consortium.manifest import Manifest, SharedFile

LIST: Final = "manifest.json"
_CHUNK: Final = 1024 * 1024
_PLAIN: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)  # no sparse one: its size costs its sender nothing
_UNREADABLE: Final = (ValueError, AttributeError, KeyError, TypeError, EOFError, OSError)


class ParcelError(ConsortiumError):
    """A parcel that cannot be made, opened or trusted; the message names the place, never a value."""


@dataclass(frozen=True)
class Packed:
    """An archive whose entries are found by name."""

    file: tarfile.TarFile
    entries: Mapping[str, tarfile.TarInfo]

    def read(self, name: str, most: int) -> bytes:
        """Return a small entry."""
        with self.stream(name, most) as source:
            return source.read()

    def stream(self, name: str, most: int) -> IO[bytes]:
        """Open an entry for reading; raises ParcelError when it is missing, no plain file or too large."""
        entry = self.entries.get(name)
        if entry is None:
            raise ParcelError("the parcel lacks a file of its list")
        source = self.file.extractfile(entry) if entry.type in _PLAIN and entry.size <= most else None
        if source is None:
            raise ParcelError("the parcel holds something that is no plain file of the expected size")
        return source


def write(output: Path, manifest: Manifest, files: Mapping[str, Path], key: str, folder: Path) -> None:
    """Write a parcel; it is there whole or not at all.

    Parameters
    ----------
    output : Path
        Where nothing stands yet.
    files : Mapping
        Path of each file of the list, by its SHA-256. Each is hashed and looked into once more.
    key : str
        The receiver's Ed25519 public key, hexadecimal.
    folder : Path
        In the research zone, for what is not encrypted yet.

    Raises
    ------
    ParcelError
        If a file is not the one of the list, is not marked as de-identified, or the disk does not take it.
    """
    if output.exists():
        raise ParcelError(f"{output.name}: is there already; expected a new file")
    recipient = sealing.recipient(key)
    try:
        with _scratch(folder) as scratch:
            plain, sealed = scratch / "parcel.tar", output.with_name(f".{output.name}.partial")
            try:
                _pack(plain, manifest, files)
                pyrage.encrypt_file(str(plain), str(sealed), [recipient])
                _sync(sealed)
                sealed.replace(output)
                _sync(output.parent)
            finally:
                sealed.unlink(missing_ok=True)
    except OSError as error:
        raise ParcelError(f"the parcel cannot be written ({error.strerror})") from error


@contextmanager
def opened(path: Path, key: Ed25519PrivateKey, folder: Path) -> Iterator[tuple[Manifest, Packed]]:
    """Decrypt a parcel for this site's key and give its list and its files, still packed.

    Raises
    ------
    ParcelError
        If it is none, another site's, damaged, or the disk does not take it.
    """
    identity = sealing.identity(key)
    with _scratch(folder) as scratch:
        plain = scratch / "parcel.tar"
        try:
            pyrage.decrypt_file(str(path), str(plain), [identity])
            with tarfile.open(plain, "r:") as file:
                packed = Packed(file, {entry.name: entry for entry in file})
                yield manifests.read(packed.read(LIST, manifests.MAX_BYTES)), packed
        except pyrage.DecryptError as error:
            raise ParcelError(f"{path.name}: damaged, no parcel, or not for this site's key") from error
        except tarfile.TarError as error:
            raise ParcelError(f"{path.name}: expected a parcel of shared studies") from error
        except OSError as error:
            raise ParcelError(f"{path.name}: cannot be opened ({error.strerror})") from error


def unpack(packed: Packed, manifest: Manifest, folder: Path) -> None:
    """Write the files of the list into a folder, each under its hash; nothing else of the parcel is used.

    Before anything is written, the disk must have room for all of them.

    Raises
    ------
    ParcelError
        If a file is missing, another one, no DICOM, or not marked as de-identified.
    """
    if shutil.disk_usage(folder).free < manifest.size:
        raise ParcelError(f"the files need {manifest.size} bytes, more than are free in the research zone")
    for one in manifest.files:
        path = folder / f"{one.sha256}.dcm"
        with packed.stream(path.name, one.size) as source, path.open("xb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
            target.flush()
            os.fsync(target.fileno())
        _check(path, one)


def _pack(plain: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    with tarfile.open(plain, "x:", format=tarfile.PAX_FORMAT) as packed:
        text = manifest.text
        packed.addfile(_entry(LIST, len(text)), io.BytesIO(text))
        for one in manifest.files:
            path = files[one.sha256]
            _check(path, one)
            with path.open("rb") as source:
                packed.addfile(_entry(f"{one.sha256}.dcm", one.size), source)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    """Return an entry that tells nothing of this machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _check(path: Path, one: SharedFile) -> None:
    from pydicom import dcmread  # noqa: PLC0415 - the research zone's standing process loads this module
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415 - as above

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != one.sha256 or path.stat().st_size != one.size:
        raise ParcelError("a file differs from the list by its hash; nothing was shared or taken over")
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=["PatientIdentityRemoved"])
        removed = str(dataset.get("PatientIdentityRemoved", ""))
    except (InvalidDicomError, *_UNREADABLE) as error:
        raise ParcelError("a file is no DICOM file; nothing was shared or taken over") from error
    if removed != "YES":
        raise ParcelError("a file is not marked as de-identified; nothing was shared or taken over")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
