"""The model package: ``model.onnx``, ``model.json``, ``SHA256SUMS``, Ed25519 signature; a folder or a zip.

A package is known by the SHA-256 of its ``SHA256SUMS``, which is the same for the folder and for its zip.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature

from inference.card import Finding, ModelCard, ModelInput, ModelOutput
from inference.children import start, stop
from inference.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "Finding",
    "Limits",
    "ModelCard",
    "ModelInput",
    "ModelOutput",
    "Package",
    "load_package",
    "open_package",
    "pack",
    "package_sha256",
    "sign_package",
    "write_package",
]

MODEL: Final = "model.onnx"
CARD: Final = "model.json"
SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
FILES: Final = (MODEL, CARD, SUMS, SIGNATURE)
_SIGNED_AS: Final = b"cloister model package 1\n"  # no other signature of the same key fits here
_SUMS_LINE: Final = re.compile(r"([0-9a-f]{64})  ([a-z.]+)\n")
_MAX_SUMS_BYTES: Final = 1024
_MAX_ANSWER_BYTES: Final = 4096
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What reading a package may cost.

    ``memory_bytes`` is the address space of the process that reads it, ``time_s`` its wall clock and CPU.
    """

    max_model_bytes: int = 512 << 20
    max_card_bytes: int = 1 << 20
    max_archive_bytes: int = 640 << 20
    memory_bytes: int = 4 << 30
    time_s: float = 60.0

    def of(self, name: str) -> int:
        """Return the largest size of one file of a package, in bytes."""
        return {MODEL: self.max_model_bytes, CARD: self.max_card_bytes, SUMS: _MAX_SUMS_BYTES, SIGNATURE: 64}[
            name
        ]


@dataclass(frozen=True)
class Package:
    """A package whose signature and hashes were verified."""

    card: ModelCard
    folder: Path
    sha256: str
    signer: str

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL


def write_package(folder: Path, onnx_bytes: bytes, card: ModelCard, signing_key: Ed25519PrivateKey) -> str:
    """Write a package as a folder, synced to disk.

    Parameters
    ----------
    folder : Path
        Made when missing.
    onnx_bytes : bytes
        The model, weights inside.
    card : ModelCard
        Its card.
    signing_key : Ed25519PrivateKey
        Whoever answers for this model.

    Returns
    -------
    str
        The package's SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(onnx_bytes)
    return sign_package(folder, card, signing_key)


def sign_package(folder: Path, card: ModelCard, signing_key: Ed25519PrivateKey) -> str:
    """Make a package of a folder that holds the model, as :func:`write_package` does; return its SHA-256."""
    (folder / CARD).write_bytes(card.to_bytes())
    digests = []
    for name in (CARD, MODEL):
        with (folder / name).open("rb") as file:
            digests.append((hashlib.file_digest(file, "sha256").hexdigest(), name))
    sums = "".join(f"{digest}  {name}\n" for digest, name in digests).encode()
    (folder / SUMS).write_bytes(sums)
    (folder / SIGNATURE).write_bytes(signing_key.sign(_SIGNED_AS + sums))
    _sync_files(folder)
    return hashlib.sha256(sums).hexdigest()


def pack(folder: Path, target: Path) -> None:
    """Zip a package: same bytes for the same folder, written aside and renamed."""
    aside = target.with_name(f".{target.name}.tmp")
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o100600 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with (folder / name).open("rb") as file:
                info.file_size = os.fstat(file.fileno()).st_size
                with archive.open(info, "w") as entry:
                    shutil.copyfileobj(file, entry, _PIECE_BYTES)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(target)


def package_sha256(path: Path) -> str:
    """Return the SHA-256 that names a package (folder or zip); nothing is verified.

    Raises
    ------
    PackageError
        ``package.files`` or ``package.zip``.
    """
    if path.is_dir():
        return hashlib.sha256(read_limited(path / SUMS, _MAX_SUMS_BYTES)).hexdigest()
    try:
        with zipfile.ZipFile(path) as archive, archive.open(SUMS) as file:
            return hashlib.sha256(file.read(_MAX_SUMS_BYTES)).hexdigest()
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise PackageError("package.zip", f"no readable {SUMS} in the archive") from error


def load_package(
    path: Path, target: Path, trusted_signers: Mapping[str, Ed25519PublicKey], limits: Limits | None = None
) -> Package:
    """Open a package that nobody vouches for yet and put it where it stays.

    A child process with limited memory and time unpacks, checks and runs it once. What the child left is
    then verified here again by signature and hash.

    Parameters
    ----------
    path : Path
        Folder or zip; it is only read.
    target : Path
        Where the package's folder shall stand; replaced when it exists.
    trusted_signers : Mapping
        Name to public key.
    limits : Limits, optional
        What it may cost.

    Raises
    ------
    PackageError
        With a stable code; ``target`` is then left as it was.
    """
    limits = limits or Limits()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
    try:
        _examine(path, staging, trusted_signers, limits)
        package = open_package(staging, trusted_signers, limits)
        _settle(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return replace(package, folder=target)


def _examine(
    source: Path, staging: Path, trusted_signers: Mapping[str, Ed25519PublicKey], limits: Limits
) -> None:
    request = {
        "source": str(source.absolute()),
        "target": str(staging.absolute()),
        "signers": {name: key.public_bytes_raw().hex() for name, key in trusted_signers.items()},
        "limits": asdict(limits),
    }
    with tempfile.TemporaryFile() as output:
        child = start("inference.examine", output)
        try:
            child.communicate(json.dumps(request).encode(), timeout=limits.time_s)
        except subprocess.TimeoutExpired as error:
            raise PackageError("package.limits", f"not opened within {limits.time_s:g} s") from error
        finally:
            stop(child)
        output.seek(0)
        answer = output.read(_MAX_ANSWER_BYTES)
    _raise_for(child.returncode, answer)


def _raise_for(returncode: int, answer: bytes) -> None:
    try:
        value = json.loads(answer)
    except ValueError:
        value = None
    if returncode != 0 or not isinstance(value, dict):
        raise PackageError("package.limits", f"the process that opened it ended with status {returncode}")
    if value:
        raise PackageError(str(value.get("code", "package.limits"))[:40], str(value.get("message", ""))[:200])


def _sync_files(folder: Path) -> None:
    for name in FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _settle(staging: Path, target: Path) -> None:
    _sync_files(staging)
    if target.exists():
        shutil.rmtree(target)
    staging.rename(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_package(
    folder: Path, trusted_signers: Mapping[str, Ed25519PublicKey], limits: Limits | None = None
) -> Package:
    """Verify signature and hashes of an unpacked package and read its card; the model itself is not parsed.

    Parameters
    ----------
    folder : Path
        Holds exactly the four files of a package.
    trusted_signers : Mapping
        Name to public key.
    limits : Limits, optional
        Sizes that are accepted.

    Raises
    ------
    PackageError
        ``package.files``, ``.size``, ``.sums``, ``.signer``, ``.hash`` or ``card``.
    """
    limits = limits or Limits()
    sums = read_limited(folder / SUMS, limits.of(SUMS))
    signer = _signer(sums, read_limited(folder / SIGNATURE, limits.of(SIGNATURE)), trusted_signers)
    expected = _parse_sums(sums)
    for name, digest in expected.items():
        if _file_sha256(folder / name, limits.of(name)) != digest:
            raise PackageError("package.hash", f"{name}: not the bytes that {SUMS} names")
    card = ModelCard.from_bytes(read_limited(folder / CARD, limits.of(CARD)))
    return Package(card, folder, hashlib.sha256(sums).hexdigest(), signer)


def read_limited(path: Path, limit: int) -> bytes:
    """Read a plain file of at most ``limit`` bytes; links, pipes and folders are refused.

    Raises
    ------
    PackageError
        ``package.files`` or ``package.size``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise PackageError("package.files", f"{path.name}: missing, or not a plain file") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackageError("package.files", f"{path.name}: not a plain file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise PackageError("package.size", f"{path.name}: expected at most {limit} bytes")
    return content


def _file_sha256(path: Path, limit: int) -> str:
    return hashlib.sha256(read_limited(path, limit)).hexdigest()


def _signer(sums: bytes, signature: bytes, trusted: Mapping[str, Ed25519PublicKey]) -> str:
    for name, key in sorted(trusted.items()):
        try:
            key.verify(signature, _SIGNED_AS + sums)
        except InvalidSignature:
            continue
        return name
    raise PackageError("package.signer", "signed by nobody whom this node trusts, or changed since")


def _parse_sums(sums: bytes) -> dict[str, str]:
    text = sums.decode("ascii", errors="replace")
    lines = _SUMS_LINE.findall(text)
    found = {name: digest for digest, name in lines}
    if "".join(f"{digest}  {name}\n" for digest, name in lines) != text or sorted(found) != [CARD, MODEL]:
        raise PackageError("package.sums", f"{SUMS}: expected one line each for {CARD} and {MODEL}")
    return found
