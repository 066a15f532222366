from __future__ import annotations

import json
import stat
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest

from appliance.federation import kit as kits
from appliance.federation import provision
from appliance.federation.errors import CoordinatorError, KitError, ProvisioningError
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.federation.provision import Federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return provision.create(tmp_path_factory.mktemp("coordinator") / "c", ["north", "south"])


def rewritten(source: Path, target: Path, **changes: bytes | None) -> Path:
    """Copy a kit with some members replaced (or left out)."""
    names = {"kit_json": "kit.json", "crt": "client.crt", "key": "client.key", "root": "rootCA.pem"}
    with zipfile.ZipFile(source) as old:
        content: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
    content |= {names[key]: value for key, value in changes.items()}
    with zipfile.ZipFile(target, "w") as new:
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)
    return target


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_site_gets_a_kit_with_its_own_certificate(federation: Federation) -> None:
    north, south = (kits.read_kit(federation.kit(site)) for site in ("north", "south"))

    assert (north.site, south.site) == ("north", "south")
    assert north.port == federation.port > 0
    assert north.root_certificate == south.root_certificate
    assert north.key != south.key


def test_nobody_else_can_read_kits_and_keys(federation: Federation) -> None:
    secret = [*federation.root.rglob("*.key"), *federation.root.glob("kits/*.zip")]

    assert len(secret) >= 4
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in secret)
    assert stat.S_IMODE(federation.root.stat().st_mode) == 0o700


def test_the_coordinator_keeps_no_sites_key(federation: Federation) -> None:
    key = kits.read_kit(federation.kit("north")).key

    kept = [path for path in federation.root.rglob("*") if path.is_file() and path.suffix != ".zip"]

    assert not [path for path in kept if key.strip() in path.read_bytes()]


def test_jobs_and_snapshots_of_the_engine_live_below_the_coordinators_folder(federation: Federation) -> None:
    text = (federation.server_workspace / "local" / "resources.json").read_text()

    assert "nvflare/" not in text
    assert str(federation.root / "engine" / "jobs") in text
    assert str(federation.root / "engine" / "snapshots") in text


def test_a_federation_is_read_back(federation: Federation) -> None:
    assert provision.load(federation.root) == federation


def test_a_folder_that_is_in_use_is_refused(federation: Federation) -> None:
    with pytest.raises(ProvisioningError, match="not empty"):
        provision.create(federation.root, ["north"])


@pytest.mark.parametrize("sites", [[], ["north", "north"], ["no/slash"], ["bad name!"]])
def test_wrong_site_names_are_refused(sites: list[str], tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError):
        provision.create(tmp_path / "c", sites)


def test_a_folder_without_a_federation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorError):
        provision.load(tmp_path)


def test_a_site_writes_its_own_policy(federation: Federation, tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path / "data")

    workspace = kits.install(kits.read_kit(federation.kit("north")), settings)

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


def test_joining_turns_the_federation_on_and_keeps_the_rest(federation: Federation, tmp_path: Path) -> None:
    config = tmp_path / "cloister.toml"
    config.write_text(
        'name = "north-node"\n# a comment\n[federation]\nminimum_cohort = 7\n'
        "enabled = false\n\n[web]\nport = 0\n"
    )
    kit = kits.read_kit(federation.kit("north"))

    kits.enable(config, kit, kits.install(kit, load_settings(config)))

    settings = load_settings(config)
    assert settings.federation.enabled
    assert settings.federation.site == "north"
    assert settings.federation.minimum_cohort == 7
    assert settings.web.port == 0
    assert "# a comment" in config.read_text()


def test_joining_twice_changes_nothing_more(federation: Federation, tmp_path: Path) -> None:
    config = tmp_path / "cloister.toml"
    config.write_text('name = "north-node"\n')
    kit = kits.read_kit(federation.kit("north"))
    workspace = kits.install(kit, load_settings(config))

    kits.enable(config, kit, workspace)
    once = config.read_text()
    kits.enable(config, kit, workspace)

    assert config.read_text() == once
    assert tomllib.loads(once)["federation"]["enabled"] is True


def test_a_configuration_that_cannot_be_changed_safely_stays_as_it_is(
    federation: Federation, tmp_path: Path
) -> None:
    config = tmp_path / "cloister.toml"
    config.write_text('federation = { enabled = false }\nname = "n"\n')
    before = config.read_text()
    kit = kits.read_kit(federation.kit("north"))

    with pytest.raises((KitError, tomllib.TOMLDecodeError)):
        kits.enable(config, kit, tmp_path)

    assert config.read_text() == before


@pytest.mark.parametrize(
    "description",
    [
        b"not json",
        b"[]",
        b'{"version": 2}',
        b'{"version": 1, "site": "../north", "host": "localhost", "port": 1}',
        b'{"version": 1, "site": "north", "host": "a b", "port": 1}',
        b'{"version": 1, "site": "north", "host": "localhost", "port": "1"}',
        b'{"version": 1, "site": "north", "host": "localhost", "port": 70000}',
        b'{"version": 1, "site": "south", "host": "localhost", "port": 1}',
        b"x" * 100_000,
    ],
)
def test_a_kit_with_a_wrong_description_is_refused(
    federation: Federation, tmp_path: Path, description: bytes
) -> None:
    path = rewritten(federation.kit("north"), tmp_path / "kit.zip", kit_json=description)

    with pytest.raises(KitError):
        kits.read_kit(path)


@pytest.mark.parametrize("part", ["crt", "key", "root"])
def test_a_kit_whose_parts_do_not_belong_together_is_refused(
    federation: Federation, tmp_path: Path, part: str
) -> None:
    names = {"crt": "client.crt", "key": "client.key", "root": "rootCA.pem"}
    other = provision.create(tmp_path / "other", ["north"])
    foreign = members(other.kit("north"))[names[part]]
    path = rewritten(federation.kit("north"), tmp_path / "kit.zip", **{part: foreign})

    with pytest.raises(KitError, match="certificate"):
        kits.read_kit(path)


@pytest.mark.parametrize("part", ["crt", "key", "root"])
def test_a_kit_with_a_missing_or_unreadable_part_is_refused(
    federation: Federation, tmp_path: Path, part: str
) -> None:
    for content in (None, b"garbage"):
        path = rewritten(federation.kit("north"), tmp_path / "kit.zip", **{part: content})

        with pytest.raises(KitError):
            kits.read_kit(path)


def test_something_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kit.zip"
    path.write_bytes(b"PK\x03\x04 but not really")

    with pytest.raises(KitError):
        kits.read_kit(path)
