from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from appliance.cli import build
from tests.further import cases as further
from tests.trainer.healthy import healthy_task
from tests.trainer.samples import small_task, write_cases
from trainer.first_model import ANOMALY_ALONE
from trainer.networks import initial_weights
from trainer.peers import NAMES, PEERS, terms
from trainer.task import LocalSpec, NetworkSpec
from trainer.weights_io import load, save, sha256

if TYPE_CHECKING:
    from pathlib import Path

# Plain, with a state, with layers of a site's own, with noise, from a model, in turns, between peers.
IN_SHORT = ["fedavg", "scaffold", "fedbn", "svt", "transfer", "cyclic", "swarm", "dfedavgm", "feddis"]
TASK = small_task(local=LocalSpec(batch_size=8, local_steps=3), validation_fraction=0.4)


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    (tmp_path / "task.json").write_text(json.dumps(TASK.to_json()))
    options = [str(tmp_path / "task.json"), "--cache", str(tmp_path / "cache")]
    for number, name in enumerate(("north", "south")):
        folder = tmp_path / name
        folder.mkdir()
        cases = write_cases(folder, 14, seed=number)
        rows = [f"{case.pseudonym},blob,{case.label}" for case in cases]
        (folder / "labels.csv").write_text("\n".join(["patient_id,label,value", *rows, "P9-9,blob,2"]) + "\n")
        options += ["--site", f"{name}={folder}"]
    return options


def test_a_simulation_prints_its_figures_and_writes_the_model(sites: list[str], tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    extra = ["--rounds", "2", "--in-process", "--baselines", "--json", "-", "--out", str(out)]
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra])
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    assert [record["number"] for record in figures["rounds"]] == [1, 2]
    assert set(figures["final"]) == {"north", "south"}
    assert set(figures["baselines"]) == {"local north", "local south", "pooled"}
    assert figures["sites"]["north"]["label_problems"][0]["code"] == "bad_value"
    counts = figures["sites"]["south"]["counts"]
    assert counts["train"] + counts["validation"] == 14
    assert figures["model_sha256"] == sha256(out)
    assert load(out)
    for site, total in figures["bytes"].items():
        rounds = [record["sites"][site] for record in figures["rounds"]]
        assert total["sent"] == sum(one["update_bytes"] for one in rounds) > 0
        assert total["received"] == sum(one["model_bytes"] for one in rounds) > 0
    assert "P9-9" not in found.output


def test_figures_are_printed_for_people_too(sites: list[str]) -> None:
    found = CliRunner().invoke(build(), ["simulate", *sites, "--rounds", "1", "--in-process"])
    assert found.exit_code == 0, found.output
    assert "final model: AUC  north" in found.stdout


def test_figures_go_to_a_file_with_labels_from_one_and_a_site_that_trains_nothing(
    sites: list[str], tmp_path: Path
) -> None:
    labels = tmp_path / "elsewhere.csv"
    (tmp_path / "south" / "labels.csv").rename(labels)
    figures_file = tmp_path / "figures.json"
    south = sites.index(f"south={tmp_path / 'south'}")
    command = [*sites[: south - 1], "--unseen", f"{sites[south]},{labels}"]
    extra = ["--rounds", "1", "--in-process", "--baselines", "--json", str(figures_file)]
    found = CliRunner().invoke(build(), ["simulate", *command, *extra])
    assert found.exit_code == 0, found.output
    figures = json.loads(figures_file.read_text())
    assert set(figures["final"]) == set(figures["bytes"]) == {"north"}
    assert set(figures["rounds"][0]["sites"]) == {"north"}
    assert figures["unseen"]["south"]["samples"] == 14
    assert figures["sites"]["south"]["counts"]["train"] == 0
    assert set(figures["baselines"]["pooled"]) == {"north", "south"}
    assert "sites that trained nothing: AUC  south" in found.stdout


def test_a_strategy_that_leaves_an_unseen_site_without_a_model_is_refused_before_training(
    sites: list[str], tmp_path: Path
) -> None:
    network = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"})
    (tmp_path / "task.json").write_text(json.dumps(replace(TASK, network=network).to_json()))
    extra = ["--unseen", f"far={tmp_path / 'south'}", "--strategy", "fedbn"]
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra])
    assert found.exit_code == 1
    assert "trained no round" in found.output


SVT = {
    "mechanism": "svt",
    "clip_norm": 0.01,
    "noise_multiplier": 1.0,
    "epsilon": 100.0,
    "delta": 1e-5,
    "share": 0.1,
}


def test_packed_updates_are_told_and_fewer_bytes_leave(sites: list[str]) -> None:
    sent = {}
    for way in ("", "top-k:share=0.02"):
        options = ["--rounds", "1", "--in-process", "--json", "-", "--compression", way]
        found = CliRunner().invoke(build(), ["simulate", *sites, *options])
        assert found.exit_code == 0, found.output
        figures = json.loads(found.stdout)
        sent[way] = figures["bytes"]["north"]["sent"]
        assert (figures["compression"] or {}).get("name") == (way.partition(":")[0] or None)
    assert sent[""] > 5 * sent["top-k:share=0.02"]


def test_strategies_are_listed_without_a_task() -> None:
    found = CliRunner().invoke(build(), ["simulate", "--list-strategies"])
    assert (found.exit_code, found.stdout.splitlines()) == (0, list(NAMES))


@pytest.mark.parametrize("strategy", further(NAMES, IN_SHORT))
def test_every_listed_strategy_runs(sites: list[str], strategy: str, tmp_path: Path) -> None:
    norm = "group" if strategy == "svt" else "batch"  # what noise protects mixes no people
    network = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": norm})
    task = replace(TASK, network=network)
    if strategy in ANOMALY_ALONE:
        task = healthy_task(preprocessing=TASK.preprocessing, modalities=TASK.modalities)
    (tmp_path / "task.json").write_text(json.dumps(task.to_json()))
    extra = ["--rounds", "2", "--in-process", "--json", "-", "--strategy", strategy]
    if terms(strategy).needs_initial:
        earlier = tmp_path / "earlier.safetensors"
        save(earlier, initial_weights(replace(TASK, network=network), 9))
        extra += ["--initial", str(earlier)]
    if strategy == "svt":
        extra += ["--privacy", json.dumps(SVT)]
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra])
    assert found.exit_code == 0, found.output
    assert set(json.loads(found.stdout)["final"]) == {"north", "south"}


@pytest.mark.parametrize("strategy", PEERS)
def test_between_peers_what_one_sends_another_receives_and_nobody_aggregates_for_all(
    sites: list[str], strategy: str
) -> None:
    extra = ["--rounds", "3", "--json", "-", "--strategy", strategy]  # in this process, asked or not
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra])
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    totals = figures["bytes"].values()
    assert sum(one["sent"] for one in totals) == sum(one["received"] for one in totals) > 0
    leaders = [record["led_by"] for record in figures["rounds"]]
    assert set(leaders) <= {"", "north", "south"}
    assert any(leaders) == (strategy != "dfedavgm")
    assert set(figures["final"]) == {"north", "south"}


@pytest.mark.parametrize("strategy", ["fedavg", *PEERS])
def test_a_site_that_does_not_answer_is_named_and_ends_nothing(sites: list[str], strategy: str) -> None:
    extra = ["--rounds", "3", "--in-process", "--json", "-", "--strategy", strategy, "--away", "south=2-3"]
    found = CliRunner().invoke(build(), ["simulate", *sites, *extra])
    assert found.exit_code == 0, found.output
    records = json.loads(found.stdout)["rounds"]
    assert [record["away"] for record in records] == [[], ["south"], ["south"]]
    assert [set(record["sites"]) for record in records[1:]] == [{"north"}] * 2
    told = CliRunner().invoke(build(), ["simulate", *sites, *extra[:3], *extra[5:]])
    assert "away: south" in told.stdout


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["--site", "north=/nowhere"], 2),
        (["--site", "no,name=/tmp"], 2),
        (["--site", "justaname"], 2),
        (["--site", "other=/tmp,/nowhere.csv"], 2),
        (["--unseen", "north=/tmp"], 2),
        (["--rounds", "1", "--in-process", "--json", "/nowhere/figures.json"], 1),
        (["--parameter", "mu=much"], 2),
        (["--strategy", "sorcery", "--in-process"], 1),
        (["--strategy", "transfer", "--in-process"], 1),
        (["--strategy", "svt", "--in-process"], 1),
        (["--strategy", "dfedavgm", "--parameter", "bits=3"], 1),
        (["--strategy", "braintorrent", "--compression", "int8"], 1),
        (["--away", "west=1"], 2),
        (["--away", "north=1-11"], 2),
        (["--away", "north"], 2),
        (["--away", "north=1", "--away", "south=1", "--in-process"], 1),
        (["--compression", "zip", "--in-process"], 2),
        (["--initial", "/nowhere.safetensors", "--in-process"], 1),
        (["--strategy", "fedprox", "--parameter", "mu=-1", "--in-process"], 1),
    ],
)
def test_wrong_use_ends_with_2_and_failed_work_with_1(sites: list[str], change: list[str], code: int) -> None:
    assert CliRunner().invoke(build(), ["simulate", *sites, *change]).exit_code == code


def test_a_missing_task_file_fails(sites: list[str]) -> None:
    assert CliRunner().invoke(build(), ["simulate", "/nowhere.json", *sites[1:]]).exit_code == 1


@pytest.mark.slow
@pytest.mark.e2e
def test_the_command_runs_on_the_engine_s_simulator(sites: list[str]) -> None:
    argv = [sys.executable, "-m", "appliance.cli", "simulate", *sites, "--rounds", "1", "--json", "-"]
    found = subprocess.run(argv, check=False, capture_output=True, timeout=280)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["rounds"][0]["sites"]["north"]["samples"] > 0
