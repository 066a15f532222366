from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest

from appliance.federation import workspaces
from appliance.federation.errors import EnrolmentError
from appliance.settings import Settings, load_settings
from tests.appliance.federation.doorway import foreign_authority, key_pem, new_key, signed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def identity() -> workspaces.Identity:
    root, key = foreign_authority(), new_key()
    return workspaces.Identity(
        "north", "hub.example", 8443, signed(root, key, "north", 9), key_pem(key), root.pem
    )


def test_a_site_writes_its_own_policy(identity: workspaces.Identity, tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path / "data")

    workspace = workspaces.install(identity, settings)

    resources = json.loads((workspace / "local" / "resources.json").read_text())
    rights = json.loads((workspace / "local" / "authorization.json").read_text())["permissions"]
    start = json.loads((workspace / "startup" / "fed_client.json").read_text())
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["class_allow_list"] == ["appliance.federation.executor.SiteExecutor"]
    assert resources["allow_log_streaming"] is False
    assert {role["byoc"] for role in rights.values()} == {"none"}
    assert {role["shell_commands"] for role in rights.values()} == {"none"}
    assert start["require_signed_jobs"] is True
    assert start["client"]["connection_security"] == "mtls"
    assert workspace.is_relative_to(settings.zone_root("research"))


def test_what_was_installed_reads_back(identity: workspaces.Identity, tmp_path: Path) -> None:
    workspace = workspaces.install(identity, Settings(data_root=tmp_path / "data"))

    assert workspaces.read(workspace) == identity
    assert repr(identity.key[100:120]) not in repr(identity)


@pytest.mark.parametrize("name", ["client.crt", "rootCA.pem", "client.key", "fed_client.json"])
@pytest.mark.parametrize("content", [None, b"x"], ids=["missing", "damaged"])
def test_a_damaged_folder_is_named(
    identity: workspaces.Identity, tmp_path: Path, name: str, content: bytes | None
) -> None:
    workspace = workspaces.install(identity, Settings(data_root=tmp_path / "data"))
    path = workspace / "startup" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(EnrolmentError, match="join"):
        workspaces.read(workspace).private_key()


def test_joining_turns_the_federation_on_and_leaving_off_and_the_rest_stays(tmp_path: Path) -> None:
    config = tmp_path / "cloister.toml"
    config.write_text(
        'name = "north-node"\n# a comment\n[federation]\nminimum_cohort = 7\n'
        "enabled = false\n\n[web]\nport = 0\n"
    )

    workspaces.enable(config, "north", tmp_path / "w")
    settings = load_settings(config)
    workspaces.enable(config, "north", tmp_path / "w")
    once = config.read_text()
    workspaces.disable(config)

    assert settings.federation.enabled
    assert settings.federation.site == "north"
    assert settings.federation.workspace == tmp_path / "w"
    assert settings.federation.minimum_cohort == 7
    assert settings.web.port == 0
    assert "# a comment" in once
    assert tomllib.loads(once)["federation"]["enabled"] is True
    assert load_settings(config).federation.enabled is False


def test_a_configuration_that_cannot_be_changed_safely_stays_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "cloister.toml"
    config.write_text('federation = { enabled = false }\nname = "n"\n')
    before = config.read_text()

    with pytest.raises((EnrolmentError, tomllib.TOMLDecodeError)):
        workspaces.enable(config, "north", tmp_path)

    assert config.read_text() == before
