from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.benchmarks.skewed_sites import TASK as SKEWED
from tests.benchmarks.skewed_sites import label_skew
from tests.trainer.samples import drawn_dataset, small_task
from trainer.compression import Compression
from trainer.errors import StrategyError
from trainer.local_round import evaluate, local_round, use_threads
from trainer.networks import initial_weights
from trainer.peers import PEERS
from trainer.privacy.promise import Promise
from trainer.simulation import bytes_by_site, simulate, unseen_metrics
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from trainer.simulation import Simulation

use_threads(1)
TASK = small_task(local=LocalSpec(batch_size=8, local_steps=2, learning_rate=3e-3))
SITES = {f"s{number}": drawn_dataset(number, TASK, train=8 * (number + 1)) for number in range(4)}
every_rule = pytest.mark.parametrize("name", PEERS)


def equal(first: Simulation, second: Simulation) -> bool:
    return all(np.array_equal(array, second.weights[name]) for name, array in first.weights.items())


def area(result: Simulation) -> float:
    return mean(one.auc.estimate for one in result.final.values() if one.auc is not None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": Compression("int8")},
        {"privacy": Promise("update-gaussian", 1.0, 4.0, epsilon=50.0, delta=1e-5)},
        {"away": {2: ["s1"]}},
    ],
    ids=["plain", "packed", "noised", "away"],
)
def test_a_swarm_comes_to_the_model_of_fedavg(options: dict[str, Any]) -> None:
    swarm = simulate(TASK, SITES, rounds=3, strategy="swarm", seed=5, **options)
    assert equal(swarm, simulate(TASK, SITES, rounds=3, strategy="fedavg", seed=5, **options))
    assert swarm.rounds[0].sites["s0"].anomaly_score is not None


@every_rule
def test_the_same_seed_gives_the_same_models_and_what_was_sent_was_received(name: str) -> None:
    first, second = (simulate(TASK, SITES, rounds=4, strategy=name, seed=5) for _ in range(2))
    assert equal(first, second)
    assert first.final == second.final
    totals = bytes_by_site(first.rounds).values()
    assert sum(one["sent"] for one in totals) == sum(one["received"] for one in totals) > 0


@every_rule
def test_who_is_away_neither_trains_nor_sends_nor_leads_and_the_rest_go_on(name: str) -> None:
    result = simulate(TASK, SITES, rounds=4, strategy=name, seed=5, away={2: ["s1"], 3: ["s1", "s2"]})
    assert [record.away for record in result.rounds] == [(), ("s1",), ("s1", "s2"), ()]
    for record in result.rounds:
        assert not set(record.away) & {*record.sites, *record.others, record.led_by}
        assert record.sites
    assert set(result.final) == set(SITES)
    with pytest.raises(StrategyError, match="every site is away"):
        simulate(TASK, SITES, rounds=4, strategy=name, away={2: list(SITES)})


def test_braintorrent_records_its_initiator_and_who_sent_models_without_training() -> None:
    result = simulate(TASK, SITES, rounds=4, strategy="braintorrent", seed=5)
    first, second = result.rounds[:2]
    assert set(first.sites) == set(SITES)
    assert first.led_by == ""
    assert set(second.sites) == {second.led_by}
    assert set(second.others) == set(SITES) - {second.led_by}
    assert second.sites[second.led_by].model_bytes == sum(one.sent for one in second.others.values())
    assert second.sites[second.led_by].update_bytes == 0


def test_the_mean_of_all_models_is_what_a_site_that_comes_new_is_measured_with() -> None:
    result = simulate(TASK, SITES, rounds=2, strategy="dfedavgm", seed=5)
    assert len({str(one.to_json()) for one in result.final.values()}) == len(SITES)
    new = {"far": drawn_dataset(9, TASK)}
    found = unseen_metrics(TASK, "dfedavgm", result.weights, new)
    assert found["far"] == evaluate(TASK, result.weights, new["far"])


@pytest.mark.parametrize("name", ["dfedavgm", "braintorrent"])
def test_updates_are_not_packed_where_none_are_sent(name: str) -> None:
    with pytest.raises(StrategyError, match="sends none"):
        simulate(TASK, SITES, rounds=1, strategy=name, compression=Compression("int8"))


def test_local_momentum_is_the_task_s_gradient_descent_with_another_share_and_rate() -> None:
    weights, data = initial_weights(TASK), SITES["s1"]
    plain = replace(TASK, local=replace(TASK.local, optimizer="sgd", learning_rate=0.05))
    expected = local_round(plain, weights, data, seed=1)

    def found(momentum: float) -> dict[str, Any]:
        parameters = {"momentum": momentum, "local_learning_rate": 0.05}
        return local_round(
            TASK, weights, data, strategy="dfedavgm", strategy_parameters=parameters, seed=1
        ).delta

    assert all(np.array_equal(array, expected.delta[name]) for name, array in found(0.9).items())
    assert any(not np.array_equal(array, expected.delta[name]) for name, array in found(0.0).items())


PLAIN = replace(SKEWED, local=replace(SKEWED.local, optimizer="sgd", learning_rate=0.05, local_steps=6))


@pytest.fixture(scope="module")
def averaged() -> Simulation:
    """FedAvg with the same local training; what a swarm comes to, too."""
    return simulate(PLAIN, label_skew(0), rounds=8, seed=0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("braintorrent", {}), ("dfedavgm", {}), ("dfedavgm", {"density": 0.5, "bits": 4})],
    ids=["braintorrent", "ring", "random"],
)
def test_on_sites_of_other_labels_peers_learn_like_fedavg(
    name: str, parameters: dict[str, float], averaged: Simulation
) -> None:
    sites = label_skew(0)
    rounds = PEERS[name].rounds(8, len(sites))
    found = simulate(PLAIN, sites, rounds=rounds, strategy=name, parameters=parameters, seed=0)
    start = mean(one.metrics.auc.estimate for one in found.rounds[0].sites.values() if one.metrics.auc)
    assert area(found) > start + 0.2
    assert area(found) > area(averaged) - 0.1
