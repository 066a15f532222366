"""Claims of papers: where each is said to hold, who is compared, and over which grid each is tuned."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import mean
from typing import TYPE_CHECKING, Final

from tests.benchmarks.skewed_sites import (
    FEW,
    MANY,
    SHARES,
    SIZES,
    TASK,
    TRAIN,
    adults,
    earlier_machines,
    few_labels,
    few_of_another_disease,
    few_of_another_machine,
    many_labels,
    scanners,
    size_and_domain_skew,
    skewed_hospital,
    two_hospitals,
)
from tests.benchmarks.trials import Claim, Trial, area, grid, trained
from trainer.simulation import held_out, simulate, unseen_metrics
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.trials import Makes
    from trainer.weights_io import Weights

UNTOUCHED: Final = "untouched"
DRIFT_ROUNDS: Final = 6
UNSEEN_ROUNDS: Final = 6
ROUNDS: Final = 12
EARLIER_ROUNDS: Final = 15
_GROUPED: Final = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2})
# As the papers do it: gradient descent, no running statistics.
DRIFT: Final = {
    steps: replace(TASK, network=_GROUPED, local=replace(TASK.local, optimizer="sgd", local_steps=steps))
    for steps in (10, 40)
}
STEADY: Final = replace(TASK, network=_GROUPED)
EARLIER: Final = replace(STEADY, local=replace(TASK.local, local_steps=20))


def unseen(make: Makes) -> Callable[[int, Trial], float]:
    """Return what leaves each site out once, and measures the others' model on all its cases."""

    def measure(seed: int, trial: Trial) -> float:
        task, sites, areas = trial.task(STEADY), make(seed), []
        for left_out, dataset in sites.items():
            others = {site: one for site, one in sites.items() if site != left_out}
            result = simulate(task, others, rounds=UNSEEN_ROUNDS, **trial.options(seed))
            there = {left_out: held_out(dataset)}
            areas.append(area(unseen_metrics(task, trial.strategy, result.weights, there)))
        return mean(areas)

    return measure


def few(make: Makes, make_earlier: Makes) -> Callable[[int, Trial], float]:
    """Return what trains on few labels, from scratch or from an earlier model, or measures that as it is."""

    @cache
    def earlier(seed: int) -> Weights:
        return simulate(EARLIER, make_earlier(seed), rounds=EARLIER_ROUNDS, seed=seed).weights

    def measure(seed: int, trial: Trial) -> float:
        task, sites = trial.task(STEADY), make(seed)
        if trial.strategy == UNTOUCHED:
            return area(unseen_metrics(task, "fedavg", earlier(seed), sites))
        initial = earlier(seed) if trial.strategy == "transfer" else None
        return area(simulate(task, sites, rounds=ROUNDS, initial=initial, **trial.options(seed)).final)

    return measure


_RATES: Final = (0.03, 0.1, 0.3)
_ADAMW: Final = (1e-3, 3e-3, 1e-2)
_SERVER: Final = (0.003, 0.01, 0.03, 0.1)
_AGAINST_DRIFT: Final = {
    "fedavg": grid("fedavg", _RATES),
    "fedprox": grid("fedprox", _RATES, mu=(0.01, 0.1, 1.0)),
    "scaffold": grid("scaffold", local_learning_rate=(*_RATES, 1.0)),
    "fedavgm": grid("fedavgm", _RATES, beta1=(0.5, 0.9)),
    "fedadam": grid("fedadam", _RATES[:2], server_learning_rate=_SERVER),
    "fedyogi": grid("fedyogi", _RATES[:2], server_learning_rate=_SERVER),
}
_ELSEWHERE: Final = {
    "fedavg": grid("fedavg", _ADAMW),
    "domain-generalisation": grid("domain-generalisation", _ADAMW[1:], reach=(0.25, 0.5, 1.0)),
    "domain-adaptation": grid("domain-adaptation", _ADAMW[1:]),
    "variation-aware": grid("variation-aware", _ADAMW),
}
_SHARES: Final = ", ".join(f"{share:.0%}" for share in SHARES)
_FEW_STEPS: Final = TASK.local.local_steps
_DRIFT_ABOUT: Final = f"""\
Chest X-rays of one hospital's children at 28 pixels, pneumonia or not: {_SHARES} of a
site's {TRAIN} training cases have it, and all are measured on as many with it as without. {DRIFT_ROUNDS}
rounds of gradient descent, in which sites drift apart. Li 2020 claims it of `fedprox`, Karimireddy 2020 of
`scaffold`, Hsu 2019 of `fedavgm`, Reddi 2021 of `fedadam` and `fedyogi`."""
_SIZES_ABOUT: Final = f"""\
Drawn pictures: sites of {", ".join(map(str, SIZES))} training cases, of which the machines of the
three small ones invert; {2 * ROUNDS} rounds of {_FEW_STEPS} steps.
Xia 2021 claims it of `auto-fedavg`."""
_UNSEEN_ABOUT: Final = f"""\
Drawn pictures; five sites whose machines differ in contrast, brightness and sharpness. Each is left
out once, and the model of the others is measured on all its cases; {UNSEEN_ROUNDS} rounds of
{_FEW_STEPS} steps. Tian 2021 claims it of `domain-generalisation`, Li 2020 (ABIDE) of `domain-adaptation`,
Yan 2020 of `variation-aware`."""
_FEW: Final = {
    "fedavg from scratch": grid("fedavg", _ADAMW),
    "transfer": grid("transfer", (3e-4, 1e-3, 3e-3), frozen_rounds=(0.0, 2.0, 6.0)),
    "the earlier model": (Trial(UNTOUCHED),),
}
_FEW_ABOUT: Final = f"""\
Two sites with {FEW} labelled training cases each, {ROUNDS} rounds of
{_FEW_STEPS} steps. Transfer starts from what {EARLIER_ROUNDS} rounds of FedAvg made of"""
_SIZES_CLAIM: Final = Claim(
    "Sites of very different size and machine",
    _SIZES_ABOUT,
    trained(size_and_domain_skew, STEADY, 2 * ROUNDS),
    {
        "fedavg": grid("fedavg", _ADAMW),
        "auto-fedavg": grid("auto-fedavg", _ADAMW, weight_learning_rate=(2.0, 8.0, 30.0)),
    },
)
FRESH_SIZES: Final = replace(
    _SIZES_CLAIM,
    entrants={
        "fedavg": grid("fedavg", (1e-2,)),
        "auto-fedavg": grid("auto-fedavg", (1e-2,), weight_learning_rate=(2.0,)),
    },
)
SMALL: Final = (
    *(
        Claim(
            f"Label skew, {steps} steps a round",
            _DRIFT_ABOUT,
            trained(skewed_hospital, task, DRIFT_ROUNDS),
            _AGAINST_DRIFT,
        )
        for steps, task in DRIFT.items()
    ),
    _SIZES_CLAIM,
    Claim("An unseen machine", _UNSEEN_ABOUT, unseen(scanners), _ELSEWHERE),
    Claim(
        "An unseen site of two hospitals",
        "Real chest X-rays at 28 pixels, two sites of each of two hospitals; each is left out, as above.",
        unseen(two_hospitals),
        _ELSEWHERE,
    ),
    Claim(
        "Few labels of another hospital",
        f"{_FEW_ABOUT} children of another hospital,\nat four sites of {MANY}; here are adults. "
        "Real chest X-rays at 28 pixels, pneumonia or not.",
        few(few_labels, many_labels),
        _FEW,
    ),
    Claim(
        "Few labels of another disease",
        f"{_FEW_ABOUT} adults, pneumonia or not;\nhere are other adults, with COVID-19 or without a finding. "
        "Real chest X-rays at 28 pixels. Pictures of the\ntwo come from "
        "different collections, so a model may learn the collection.",
        few(few_of_another_disease, adults),
        _FEW,
    ),
    Claim(
        "Few labels of another machine",
        f"{_FEW_ABOUT} drawn pictures\nof four machines, {MANY} cases each; here is the fifth.",
        few(few_of_another_machine, earlier_machines),
        _FEW,
    ),
)
