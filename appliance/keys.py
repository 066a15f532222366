"""Key files of the zones: made once, readable by their owner alone, never replaced silently."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES: Final = 32
_PUBLIC_NAME: Final = "research.pub"
_FOLLOWING: Final = "vault.next.key"


class KeyFileError(ApplianceError):
    """A key file is missing, damaged or readable by others."""


@dataclass(frozen=True, repr=False)
class ClinicalKeys:
    """Secrets of the clinical zone.

    ``vault`` is the vault's key as this process found it; what seals and opens reads it anew.
    """

    vault: bytes
    pseudonym_master: bytes
    ledger_salt: bytes
    signing: Ed25519PrivateKey


@dataclass(frozen=True, repr=False)
class VaultKeys:
    """Keys of the vault: the present one, and during a rotation the one that follows it."""

    current: bytes
    following: bytes | None

    @property
    def sealing(self) -> bytes:
        """What new entries are sealed with."""
        return self.following or self.current


@dataclass(frozen=True, repr=False)
class ResearchKeys:
    """Secrets of the research zone."""

    ledger_salt: bytes
    signing: Ed25519PrivateKey


def create_clinical_keys(zone_root: Path) -> None:
    """Make the key files that do not exist yet in ``zone_root/keys``."""
    folder = _folder(zone_root)
    for name in ("vault", "pseudonym", "ledger_salt"):
        _create(folder / f"{name}.key", secrets.token_bytes(SECRET_BYTES))
    _create(folder / "signing.pem", _new_signing_key())


def create_research_keys(zone_root: Path) -> None:
    """Make the key files that do not exist yet in ``zone_root/keys``."""
    folder = _folder(zone_root)
    _create(folder / "ledger_salt.key", secrets.token_bytes(SECRET_BYTES))
    _create(folder / "signing.pem", _new_signing_key())


def load_clinical_keys(zone_root: Path) -> ClinicalKeys:
    """Read the clinical zone's keys.

    Raises
    ------
    KeyFileError
        If a file is missing, has the wrong length, or others may read it.
    """
    folder = zone_root / "keys"
    return ClinicalKeys(
        vault=_secret(folder / "vault.key"),
        pseudonym_master=_secret(folder / "pseudonym.key"),
        ledger_salt=_secret(folder / "ledger_salt.key"),
        signing=_signing_key(folder / "signing.pem"),
    )


def load_vault_keys(zone_root: Path) -> VaultKeys:
    """Read the vault's keys as they are now; raises like :func:`load_clinical_keys`.

    The following key is read first: a rotation that ends in between has made it the present one.
    """
    folder = zone_root / "keys"
    path = folder / _FOLLOWING
    try:
        following = _secret(path) if path.exists() else None
    except KeyFileError:
        if path.exists():
            raise
        following = None
    return VaultKeys(_secret(folder / "vault.key"), following)


def begin_vault_rotation(zone_root: Path) -> bytes:
    """Return the vault's following key, made unless a rotation has begun."""
    path = zone_root / "keys" / _FOLLOWING
    _create(path, secrets.token_bytes(SECRET_BYTES))
    return _secret(path)


def end_vault_rotation(zone_root: Path) -> None:
    """Put the following key in the present one's place, and overwrite that."""
    folder = zone_root / "keys"
    with (folder / "vault.key").open("r+b") as old:
        (folder / _FOLLOWING).replace(folder / "vault.key")
        _sync(folder)
        old.write(secrets.token_bytes(SECRET_BYTES))
        old.flush()
        os.fsync(old.fileno())


def load_research_keys(zone_root: Path) -> ResearchKeys:
    """Read the research zone's keys; raises like :func:`load_clinical_keys`."""
    folder = zone_root / "keys"
    return ResearchKeys(
        ledger_salt=_secret(folder / "ledger_salt.key"), signing=_signing_key(folder / "signing.pem")
    )


def publish_research_key(key: Ed25519PublicKey, crossing_in: Path) -> Path:
    """Write the research zone's public key, by which the clinical zone knows who signed a model package."""
    path = crossing_in / _PUBLIC_NAME
    content = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not path.is_file() or path.read_bytes() != content:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    return path


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM form; raises KeyFileError when it is none."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path}: expected an Ed25519 public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: expected an Ed25519 public key, found another kind")
    return key


def _folder(zone_root: Path) -> Path:
    folder = zone_root / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _new_signing_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _create(path: Path, content: bytes) -> None:
    """Write a key file whole or not at all; an existing one stays."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # fails when another process was first, which is as good
    except FileExistsError:
        return
    finally:
        temporary.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise KeyFileError(f"{path}: others may read it; expected mode 0600 (chmod 600)")
            return file.read()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; expected a key file") from error


def _secret(path: Path) -> bytes:
    content = _read(path)
    if len(content) != SECRET_BYTES:
        raise KeyFileError(f"{path}: {len(content)} bytes; expected {SECRET_BYTES}")
    return content


def _signing_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except ValueError as error:
        raise KeyFileError(f"{path}: expected an Ed25519 private key in PEM form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: expected an Ed25519 private key, found another kind")
    return key
