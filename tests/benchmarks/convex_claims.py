"""Claims about logistic regression: sites that drift apart, and servers that step by coordinate.

What decides, rounds, sites and grids were set on the seeds of tuning alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from tests.benchmarks import convex_sites
from tests.benchmarks.convex_sites import (
    DESCENT,
    SORTED,
    SORTED_SITES,
    SORTED_TRAIN,
    SPARSE,
    SPARSE_SITES,
    SPARSE_TRAIN,
    SYNTHETIC_SITES,
)
from tests.benchmarks.trials import LOG_LOSS, Claim, grid, lately, rounds_to, trained

TARGET: Final = 0.25
_ALL_ROUNDS: Final = 30
_FEW_ROUNDS: Final = 60
_FEW_SITES: Final = 2
_STEPS: Final = (5, 20)
_PROXIMAL_ROUNDS: Final = 40
_PROXIMAL_SITES: Final = 10
_LAST: Final = 20
_ADAPTIVE_ROUNDS: Final = 15

# A seed's sites are made once for all who are compared on it.
_sorted = lru_cache(2)(convex_sites.sorted_by_label)
_synthetic = lru_cache(2)(convex_sites.synthetic)
_sparse = lru_cache(2)(convex_sites.sparse)

_SORTED_ABOUT: Final = f"""\
Chest X-rays of one hospital's children at 14 pixels, sorted by label: {SORTED_SITES} sites of
{SORTED_TRAIN} training cases, of which half have pneumonia alone and half never (no similarity, in
Karimireddy 2020). Counted are rounds until the held-out log loss is at most {TARGET}"""
_DRIFT: Final = {
    "fedavg": grid("fedavg", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), steps=_STEPS),
    **{
        f"scaffold, {steps} steps": grid(
            "scaffold", steps=(steps,), local_learning_rate=(0.03, 0.1, 0.3, 1.0, 3.0), sites=(SORTED_SITES,)
        )
        for steps in _STEPS
    },
}
DRIFTING: Final = (
    Claim(
        "Sites of one label each, all taking part",
        f"{_SORTED_ABOUT} ({_ALL_ROUNDS + 1} if never in {_ALL_ROUNDS}).",
        rounds_to(TARGET, _sorted, SORTED, _ALL_ROUNDS),
        _DRIFT,
        "rounds",
        less=True,
    ),
    Claim(
        f"Sites of one label each, {_FEW_SITES} of {SORTED_SITES} taking part",
        f"{_SORTED_ABOUT} ({_FEW_ROUNDS + 1} if never in {_FEW_ROUNDS}).\nSites are drawn for each round.",
        rounds_to(TARGET, _sorted, SORTED, _FEW_ROUNDS, _FEW_SITES),
        _DRIFT,
        "rounds",
        less=True,
    ),
)
_PROXIMAL: Final = replace(DESCENT, local=replace(DESCENT.local, local_steps=20))
_PROXIMAL_ABOUT: Final = f"""\
Synthetic(1, 1) of Li 2020 with two classes, as pictures of 64 pixels: {SYNTHETIC_SITES} sites of 50 to 1,000
cases, log-normal; at each another model makes the labels of other pictures, whose pixels' variances
fall from 1 to 64^-1.2. {_PROXIMAL_SITES} sites are drawn for each of {_PROXIMAL_ROUNDS} rounds of
{_PROXIMAL.local.local_steps} steps. The figure is the mean held-out log loss after the last {_LAST} rounds
each, so that a model that swings pays for it."""
_measure_proximal = lately(_LAST, _synthetic, _PROXIMAL, _PROXIMAL_ROUNDS, _PROXIMAL_SITES)
_MU: Final = (0.1, 0.3, 1.0, 3.0)
_SERVER: Final = (0.01, 0.03, 0.1, 0.3)
_SPARSE_TASK: Final = replace(SPARSE, local=replace(SPARSE.local, local_steps=5))
_SPARSE_ABOUT: Final = f"""\
Pictures of few lit pixels, as Reddi 2021 has bags of words: pixel j of 1,024 is lit with a chance that
falls as 1 / j and tells as much of the label where it is lit. {SPARSE_SITES} sites of {SPARSE_TRAIN}
cases with favourites of their own; AUC after {_ADAPTIVE_ROUNDS} rounds of
{_SPARSE_TASK.local.local_steps} steps."""
ADAPTIVE: Final = (
    Claim(
        "Synthetic sites, rates tuned",
        f"{_PROXIMAL_ABOUT} Rates of both are tuned.",
        _measure_proximal,
        {
            "fedavg": grid("fedavg", (0.001, 0.003, 0.01, 0.03), server_learning_rate=(0.5, 1.0)),
            "fedprox": grid("fedprox", (0.003, 0.01, 0.03), mu=_MU),
        },
        LOG_LOSS,
        less=True,
    ),
    Claim(
        "Synthetic sites, one rate for both",
        "As above, but with a rate that is too large for `fedavg`: the paper compares both at one rate.",
        _measure_proximal,
        {"fedavg": grid("fedavg", (0.03,)), "fedprox": grid("fedprox", (0.03,), mu=_MU)},
        LOG_LOSS,
        less=True,
    ),
    Claim(
        "Sparse features, few rounds",
        _SPARSE_ABOUT,
        trained(_sparse, _SPARSE_TASK, _ADAPTIVE_ROUNDS),
        {
            "fedavg": grid("fedavg", (0.1, 0.3, 1.0, 3.0, 10.0), server_learning_rate=(1.0, 3.0)),
            "fedavgm": grid("fedavgm", (0.1, 0.3, 1.0, 3.0), beta1=(0.5, 0.9)),
            "fedadam": grid("fedadam", (0.1, 1.0), server_learning_rate=_SERVER),
            "fedyogi": grid("fedyogi", (0.1, 1.0), server_learning_rate=_SERVER),
        },
    ),
)
