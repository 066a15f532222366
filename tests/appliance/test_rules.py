from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from appliance import cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "n"
    assert (
        CliRunner().invoke(cli.build(), ["init", str(path), "--port", "0", "--web-port", "0"]).exit_code == 0
    )
    return str(path / "cloister.toml")


def cloister(config: str, *words: str) -> Result:
    return CliRunner().invoke(cli.build(), [*words, "--config", config])


def rules(config: str) -> dict[str, dict[str, object]]:
    listed = json.loads(cloister(config, "rule", "list", "--json").output)
    return {rule["name"]: rule for rule in listed}


def test_a_new_node_has_a_rule_that_delivers_nowhere_until_a_person_says_where(config: str) -> None:
    (first,) = rules(config)
    assert not rules(config)[first]["action"].get("destinations")  # type: ignore[attr-defined]
    assert cloister(config, "peer", "add", "ws", "WS1", "127.0.0.1", "104", "--destination").exit_code == 0
    done = cloister(config, "rule", "set", first, "--destination", "ws")
    assert done.exit_code == 0, done.output
    action = rules(config)[first]["action"]
    assert action["destinations"] == ["ws"]  # type: ignore[index]
    assert action["research"] is True  # type: ignore[index]


def test_a_rule_is_added_changed_switched_off_and_removed(config: str) -> None:
    added = cloister(config, "rule", "add", "chest", "--modality", "DX", "--modality", "CR", "--inference")
    assert added.exit_code == 0, added.output
    assert rules(config)["chest"] == {
        "name": "chest",
        "enabled": True,
        "condition": {"modality": ["DX", "CR"]},
        "action": {"inference": True},
    }
    assert cloister(config, "rule", "set", "chest", "--priority", "0", "--disable").exit_code == 0
    assert rules(config)["chest"]["action"] == {"inference": True, "priority": 0}
    assert rules(config)["chest"]["enabled"] is False
    assert cloister(config, "rule", "remove", "chest").exit_code == 0
    assert "chest" not in rules(config)
    assert cloister(config, "ledger", "verify").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "nothing", "--priority", "1"), "no rule of this name"),
        (("add", "far", "--destination", "nowhere"), "action.destinations: no such destination"),
        (("add", "late", "--priority", "12"), "action.priority: expected 0"),
        (("add", "slow", "--description", "(a+)+"), "condition.description"),
    ],
)
def test_a_wrong_rule_is_refused_and_the_field_named(
    config: str, words: tuple[str, ...], message: str
) -> None:
    before = rules(config)
    done = cloister(config, "rule", *words)
    assert done.exit_code == 2
    assert message in done.output
    assert rules(config) == before
