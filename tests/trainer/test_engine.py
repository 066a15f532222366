from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from tests.appliance.servers import wait_until
from tests.further import FURTHER
from tests.trainer.samples import drawn_dataset, small_task
from trainer.engine import simulator
from trainer.engine.exchange import Order, load_dataset, save_dataset
from trainer.errors import SimulationError, StrategyError
from trainer.local_round import use_threads
from trainer.privacy.promise import Promise
from trainer.simulation import simulate
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from pathlib import Path

use_threads(1)
TASK = small_task()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("strategy", "parameters", "privacy"),
    [
        ("fedprox", {"mu": 0.1}, Promise("dp-sgd", 1.0, 1.5, epsilon=50.0, delta=1e-5, sampling_rate=0.5)),
        pytest.param("scaffold", {}, None, marks=FURTHER),
        pytest.param("cyclic", {}, None, marks=FURTHER),
    ],
    ids=["fedprox", "scaffold", "cyclic"],
)
def test_the_engine_s_simulator_comes_to_the_same_model_as_the_loop(
    strategy: str, parameters: dict[str, float], privacy: Promise | None
) -> None:
    datasets = {f"s{number}": drawn_dataset(number, TASK) for number in range(3)}
    options: dict[str, Any] = {"strategy": strategy, "parameters": parameters, "privacy": privacy}
    options["away"] = {2: ["s1"]}
    here = simulate(TASK, datasets, rounds=2, seed=1, **options)
    there = simulator.simulate_on_engine(TASK, datasets, rounds=2, seed=1, time_limit_s=240, **options)
    assert all(np.array_equal(here.weights[name], there.weights[name]) for name in here.weights)
    assert there.final == here.final
    assert [set(record.sites) for record in there.rounds] == [set(record.sites) for record in here.rounds]
    assert (
        [record.away for record in there.rounds] == [record.away for record in here.rounds] == [(), ("s1",)]
    )
    for record, same in zip(there.rounds, here.rounds, strict=True):
        assert {site: one.metrics for site, one in record.sites.items()} == {
            site: one.metrics for site, one in same.sites.items()
        }


def test_an_order_and_a_dataset_survive_the_folder(tmp_path: Path) -> None:
    promise = Promise("update-gaussian", 1.0, 4.0, epsilon=50.0, delta=1e-5)
    order = Order(TASK, ("a", "b"), 3, "fedprox", {"mu": 0.5}, 9, promise, away={2: ["a"]})
    order.write(tmp_path)
    assert Order.read(tmp_path) == order
    dataset = drawn_dataset(1, TASK)
    save_dataset(tmp_path, "a", dataset)
    found = load_dataset(tmp_path, "a")
    assert np.array_equal(found.train.x, dataset.train.x)
    assert found.train.pseudonyms == dataset.train.pseudonyms
    assert np.array_equal(found.validation.y, dataset.validation.y)


def test_an_engine_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(simulator, "_command", lambda *_: ["/bin/sh", "-c", "echo broken; exit 3"])
    with pytest.raises(SimulationError, match="code 3") as caught:
        simulator.simulate_on_engine(TASK, {"a": drawn_dataset(1, TASK)}, rounds=1)
    assert "broken" in caught.value.log
    monkeypatch.setattr(simulator, "_command", lambda *_: ["/bin/true"])
    with pytest.raises(SimulationError, match="without a result"):
        simulator.simulate_on_engine(TASK, {"a": drawn_dataset(1, TASK)}, rounds=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.e2e
@FURTHER
def test_a_simulation_that_takes_too_long_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    endless = small_task(local=LocalSpec(local_steps=100_000))

    def ours() -> list[str]:
        lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if str(tmp_path) in line]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            simulator.simulate_on_engine, endless, {"a": drawn_dataset(1, endless)}, rounds=1, time_limit_s=45
        )
        wait_until(lambda: any("simulator_worker" in line for line in ours()), 40, "the site's process runs")
        with pytest.raises(SimulationError, match="within"):
            running.result()
    wait_until(lambda: ours() == [], 60, "every process has ended")


@pytest.mark.parametrize("name", ["../a", "a,b", "", "server"])
def test_a_site_name_that_the_engine_could_misread_is_refused(name: str) -> None:
    with pytest.raises(SimulationError, match="site"):
        simulator.simulate_on_engine(TASK, {name: drawn_dataset(1, TASK)}, rounds=1)


def test_a_wrong_strategy_is_refused_before_the_engine_starts() -> None:
    with pytest.raises(StrategyError):
        simulator.simulate_on_engine(TASK, {"a": drawn_dataset(1, TASK)}, rounds=1, strategy="sorcery")
