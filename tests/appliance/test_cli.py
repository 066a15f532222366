from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner, Result

from appliance import cli, node
from appliance.db.engine import make_engine, writing
from appliance.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "correct horse battery"


def cloister(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.build(), list(words), input=stdin)


@pytest.fixture
def config(tmp_path: Path) -> str:
    result = cloister("init", str(tmp_path / "n"), "--name", "ward-7", "--port", "0", "--web-port", "0")
    assert result.exit_code == 0, result.output
    return str(tmp_path / "n" / "cloister.toml")


def test_a_command_that_is_built_alone_is_the_one_of_the_whole_program() -> None:
    whole = get_command(cli.build())
    assert isinstance(whole, Group)
    for name, command in whole.commands.items():
        alone = get_command(cli.build(name))
        assert isinstance(alone, Group)
        assert alone.commands[name].help == command.help
        assert len(alone.commands) <= 2
    unknown = get_command(cli.build("no-such-command"))
    assert isinstance(unknown, Group)
    assert unknown.commands.keys() == whole.commands.keys()


def test_init_makes_a_node_that_can_be_opened(config: str, tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "n" / "cloister.toml")
    assert settings.name == "ward-7"
    assert settings.data_root == (tmp_path / "n" / "data").resolve()
    assert node.open_clinical(settings).keys


def test_init_never_overwrites(config: str, tmp_path: Path) -> None:
    result = cloister("init", str(tmp_path / "n"))
    assert result.exit_code == 2
    assert "exists already" in result.output


@pytest.mark.parametrize("words", [("--name", "a b"), ("--ae-title", 'x"y'), ("--port", "70000")])
def test_init_refuses_wrong_values_and_leaves_nothing(tmp_path: Path, words: tuple[str, str]) -> None:
    result = cloister("init", str(tmp_path / "n"), *words)
    assert result.exit_code == 2
    assert not (tmp_path / "n" / "cloister.toml").exists()


def test_a_wrong_configuration_names_every_bad_field_and_exits_2(tmp_path: Path) -> None:
    path = tmp_path / "cloister.toml"
    path.write_text(
        'name = "two words"\ncolour = "red"\n[dicom]\nport = 70000\nae_title = "MUCH-TOO-LONG-AE-TITLE"\n'
        '[web]\nport = "many"\n[assembly]\nquiet_period_s = -1\n'
    )
    fields = ("name", "colour", "dicom.port", "dicom.ae_title", "web.port", "assembly.quiet_period_s")
    for words in (["up"], ["doctor"], ["ledger", "verify"], ["user", "list"]):
        result = cloister(*words, "--config", str(path))
        assert result.exit_code == 2, words
        assert [field for field in fields if field not in result.output] == []
        assert "MUCH-TOO-LONG" not in result.output


@pytest.mark.parametrize("name", ["clinical_redis", "clinical_worker"])
def test_a_process_with_a_wrong_configuration_exits_2(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cloister.toml"
    path.write_text("[dicom]\nport = 70000\n")
    argv = [sys.executable, "-m", f"appliance.processes.{name}", "--config", str(path)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "dicom.port" in done.stderr


@pytest.mark.parametrize("content", [None, "= nonsense", b"\xff\xfe"])
def test_a_missing_or_broken_configuration_exits_2(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "cloister.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = cloister("doctor", "--config", str(path))
    assert result.exit_code == 2
    assert "cloister.toml" in result.output


def test_users_are_added_listed_disabled_and_given_new_passwords(config: str) -> None:
    add = ("user", "add", "anna", "--role", "radiologist", "--right", "retry_jobs", "--password-stdin")
    assert cloister(*add, "--config", config, stdin=PASSWORD + "\n").exit_code == 0
    listed = json.loads(cloister("user", "list", "--json", "--config", config).output)
    rights = ["approve_model", "fetch_studies", "retry_jobs", "view", "view_identity"]
    assert listed == [{"name": "anna", "enabled": True, "rights": rights}]
    assert cloister("user", "disable", "anna", "--config", config).exit_code == 0
    assert "disabled" in cloister("user", "list", "--config", config).output
    assert cloister("user", "enable", "anna", "--config", config).exit_code == 0
    changed = cloister(
        "user", "password", "anna", "--password-stdin", "--config", config, stdin="another long one"
    )
    assert changed.exit_code == 0


def test_a_user_without_rights_or_with_unknown_ones_is_wrong_use(config: str) -> None:
    for words in ([], ["--role", "king"], ["--right", "everything"]):
        result = cloister(
            "user", "add", "anna", *words, "--password-stdin", "--config", config, stdin=PASSWORD
        )
        assert result.exit_code == 2


def run_cloister(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance.cli", *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, input=stdin)


def test_work_that_fails_exits_1_with_a_sentence(config: str) -> None:
    poor = run_cloister(
        "user", "add", "anna", "--role", "admin", "--password-stdin", "--config", config, stdin="x"
    )
    assert (poor.returncode, "Traceback" in poor.stderr) == (1, False)
    assert "too short" in poor.stderr
    unknown = run_cloister("user", "disable", "nobody", "--config", config)
    assert unknown.returncode == 1
    assert "no user of this name" in unknown.stderr


def test_wrong_use_exits_2() -> None:
    assert run_cloister("nonsense").returncode == 2
    assert run_cloister("user", "add").returncode == 2


@pytest.mark.parametrize("body", ["'{}'", "x'00ff'"])
def test_the_ledger_is_verified_and_tampering_exits_1(config: str, tmp_path: Path, body: str) -> None:
    intact = cloister("ledger", "verify", "--json", "--config", config)
    assert intact.exit_code == 0
    assert {zone: report["ok"] for zone, report in json.loads(intact.output).items()} == {
        "clinical": True,
        "research": True,
    }
    engine = make_engine(f"sqlite:///{tmp_path}/n/data/clinical/clinical.db")
    with writing(engine) as session:
        session.execute(text(f"UPDATE ledger_entry SET body = {body} WHERE sequence = 1"))  # noqa: S608 - of this test
    engine.dispose()
    broken = cloister("ledger", "verify", "--config", config)
    assert broken.exit_code == 1
    assert "NOT INTACT" in broken.output
    assert "entry 1" in broken.output
    assert cloister("ledger", "verify", "--zone", "research", "--config", config).exit_code == 0
    report = json.loads(cloister("doctor", "--json", "--config", config).output)
    wrong = {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}
    assert "1 problems" in wrong["clinical ledger"]


def test_the_doctor_of_a_stopped_node_names_what_is_wrong_and_the_fix(config: str) -> None:
    result = cloister("doctor", "--json", "--config", config)
    assert result.exit_code == 1
    report = json.loads(result.output)
    wrong = {check["name"]: check for check in report["checks"] if not check["ok"]}
    assert {"process scp", "clinical redis"} <= set(wrong)
    assert all(check["fix"] for check in wrong.values())
    well = {check["name"] for check in report["checks"] if check["ok"]}
    assert {"clinical keys", "clinical schema", "clinical ledger", "embedded redis", "disk"} <= well


def test_the_doctor_names_keys_that_others_may_read(config: str, tmp_path: Path) -> None:
    (tmp_path / "n" / "data" / "clinical" / "keys" / "vault.key").chmod(0o644)
    report = json.loads(cloister("doctor", "--json", "--config", config).output)
    wrong = {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}
    assert "0600" in wrong["clinical keys"]


def test_the_doctor_of_no_node_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "cloister.toml"
    path.write_text("")
    report = json.loads(cloister("doctor", "--json", "--config", str(path)).output)
    wrong = {check["name"]: check["fix"] for check in report["checks"] if not check["ok"]}
    assert "cloister init" in wrong["folder clinical"]


def test_bench_lists_what_there_is_and_refuses_the_rest() -> None:
    listed = cloister("bench", "list")
    assert listed.exit_code == 0
    assert {"receive", "deidentify", "federation"} <= set(listed.output.split())
    assert cloister("bench", "no-such").exit_code == 2


@pytest.mark.parametrize("words", [["--rounds", "many"], ["--rounds"], ["--unknown", "1"], ["rounds", "1"]])
def test_bench_refuses_options_that_the_benchmark_does_not_take(words: list[str]) -> None:
    refused = cloister("bench", "compression", *words)
    assert refused.exit_code == 2
    assert "--seeds VALUE, --rounds VALUE" in refused.output


def test_help_names_the_commands() -> None:
    output = run_cloister("--help").stdout
    assert [name for name in ("init", "up", "doctor", "ledger", "user", "bench") if name not in output] == []
