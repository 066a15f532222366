from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance import keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.settings import Settings


def test_key_files_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    keys.create_clinical_keys(tmp_path)
    first = keys.load_clinical_keys(tmp_path)
    keys.create_clinical_keys(tmp_path)
    again = keys.load_clinical_keys(tmp_path)
    assert (first.vault, first.pseudonym_master) == (again.vault, again.pseudonym_master)
    assert first.signing.public_key() == again.signing.public_key()
    files = list((tmp_path / "keys").iterdir())
    assert {path.name for path in files} == {"vault.key", "pseudonym.key", "ledger_salt.key", "signing.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_all_secrets_of_a_node_differ(tmp_path: Path) -> None:
    keys.create_clinical_keys(tmp_path / "a")
    keys.create_clinical_keys(tmp_path / "b")
    found = [keys.load_clinical_keys(tmp_path / name) for name in "ab"]
    secrets = [secret for one in found for secret in (one.vault, one.pseudonym_master, one.ledger_salt)]
    assert len(set(secrets)) == 6


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys.create_clinical_keys(tmp_path)
    (tmp_path / "keys" / "vault.key").chmod(0o640)
    with pytest.raises(keys.KeyFileError, match="0600"):
        keys.load_clinical_keys(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_secret_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    keys.create_clinical_keys(tmp_path)
    path = tmp_path / "keys" / "vault.key"
    path.write_bytes(content)
    keys.create_clinical_keys(tmp_path)
    with pytest.raises(keys.KeyFileError, match="bytes"):
        keys.load_clinical_keys(tmp_path)
    assert path.read_bytes() == content


def test_a_missing_key_is_an_error_and_no_new_key(tmp_path: Path) -> None:
    keys.create_research_keys(tmp_path)
    (tmp_path / "keys" / "signing.pem").unlink()
    with pytest.raises(keys.KeyFileError):
        keys.load_research_keys(tmp_path)
    assert not (tmp_path / "keys" / "signing.pem").exists()


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    keys.create_research_keys(tmp_path)
    other = generate_private_key(SECP256R1())
    path = tmp_path / "keys" / "signing.pem"
    path.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(keys.KeyFileError, match="another kind"):
        keys.load_research_keys(tmp_path)
    path.write_bytes(b"rubbish")
    with pytest.raises(keys.KeyFileError, match="PEM"):
        keys.load_research_keys(tmp_path)


def test_the_research_zone_s_public_key_is_published(make_node: Callable[..., Settings]) -> None:
    settings = make_node()
    public = keys.read_public_key(settings.crossing_in / "research.pub")
    assert public == keys.load_research_keys(settings.zone_root("research")).signing.public_key()
    with pytest.raises(keys.KeyFileError):
        keys.read_public_key(settings.zone_root("clinical") / "keys" / "vault.key")


def test_keys_do_not_show_in_their_description(tmp_path: Path) -> None:
    keys.create_clinical_keys(tmp_path)
    found = keys.load_clinical_keys(tmp_path)
    assert found.vault.hex() not in repr(found)
    assert repr(found.vault) not in repr(found)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become two other users")
def test_one_zone_s_user_cannot_read_the_other_zone_s_keys(tmp_path: Path) -> None:
    keys.create_clinical_keys(tmp_path / "clinical")
    for path in (tmp_path / "clinical").rglob("*"):
        os.chown(path, 65_001, 65_001)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/pytest"):  # noqa: S108 - pytest's folders
            folder.chmod(0o711)
    pid = os.fork()
    if pid == 0:
        os.setgid(65_002)
        os.setuid(65_002)
        code = 1
        try:
            (tmp_path / "clinical" / "keys" / "vault.key").read_bytes()
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
