from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from typer.testing import CliRunner, Result

from appliance import cli
from tests.dicom_node.support import ct

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


EVENING = '{"all": [{"attribute": "Modality", "in": ["CT"]}, {"not": {"source": ["ARCHIVE"]}}]}'


def test_a_rule_takes_a_whole_condition_and_a_place_in_the_list(config: str) -> None:
    added = cloister(config, "rule", "add", "ct", "--condition", EVENING, "--research", "--discard", "")
    assert added.exit_code == 0, added.output
    assert rules(config)["ct"]["condition"] == json.loads(EVENING)
    assert list(rules(config)) == ["everything", "ct"]
    assert cloister(config, "rule", "move", "ct", "sideways").exit_code == 2
    assert cloister(config, "rule", "move", "ct", "up").exit_code == 0
    assert list(rules(config)) == ["ct", "everything"]
    for where in ("up", "last", "first"):
        assert cloister(config, "rule", "move", "ct", where).exit_code == 0
    assert list(rules(config)) == ["ct", "everything"]
    refused = cloister(config, "rule", "set", "ct", "--modality", "MR")
    assert refused.exit_code == 2
    assert "flat form" in refused.output
    assert cloister(config, "rule", "set", "ct", "--condition", '{"modality": ["MR"]}').exit_code == 0
    assert rules(config)["ct"]["condition"] == {"modality": ["MR"]}
    listed = cloister(config, "rule", "list").output
    assert "if    Modality is one of MR" in listed
    assert "then  research" in listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "x", "--condition", "{"), "expected JSON"),
        (("add", "x", "--condition", "{}", "--modality", "CT"), "expected it alone"),
        (("add", "x", "--condition", '{"any": []}'), "condition.any"),
        (("add", "x", "--model", "nodules"), "action.models: no such model: nodules"),
        (("try",), "a study or a file"),
        (("try", "--study", "abcdef"), "no such row"),
        (("try", "nobody", "--file", "{file}"), "no rule of this name"),
        (("try", "--file", "{config}"), "file: "),
    ],
)
def test_what_cannot_be_meant_is_refused(
    config: str, ct_file: Path, words: tuple[str, ...], message: str
) -> None:
    named = [word.replace("{file}", str(ct_file)).replace("{config}", config) for word in words]
    done = cloister(config, "rule", *named)
    assert done.exit_code == 2, done.output
    assert message in done.output


@pytest.fixture
def ct_file(tmp_path: Path) -> Path:
    path = tmp_path / "ct.dcm"
    ds = ct(SeriesDescription="lung Miller^Anna")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def test_rules_are_tried_on_a_file_and_nothing_is_stored(config: str, ct_file: Path) -> None:
    cloister(config, "rule", "add", "ct", "--condition", EVENING, "--inference", "--disable")
    tried = cloister(config, "rule", "try", "ct", "--file", str(ct_file))
    assert tried.exit_code == 0, tried.output
    assert tried.output == (
        "ct: matched because Modality is one of CT (CT) and it did not come from ARCHIVE\n"
    )
    other = cloister(config, "rule", "try", "ct", "--file", str(ct_file), "--from", "ARCHIVE")
    assert other.output == "ct: did not match because it came from ARCHIVE\n"
    unsaved = '{"attribute": "SeriesDescription", "matches": "^lung"}'
    said = cloister(config, "rule", "try", "--condition", unsaved, "--file", str(ct_file), "--json")
    (explanation,) = json.loads(said.output)["explanation"]
    assert explanation["matched"] is True
    assert "Miller" not in said.output
    assert json.loads(cloister(config, "study", "list", "--json").output) == []
