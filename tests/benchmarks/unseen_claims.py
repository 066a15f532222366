"""What is claimed of a site that nobody trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from tests.benchmarks.convex_sites import DESCENT
from tests.benchmarks.trials import Claim, area, grid
from trainer.datasets import Dataset, Samples
from trainer.simulation import held_out, simulate, unseen_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.trials import Makes, Trial
    from trainer.task import TaskSpec

UNSEEN: Final = "unseen"
ROUNDS: Final = 20
TAGGED_TRAIN: Final = 100
TAGGED_HELD_OUT: Final = 400
# How often a picture's tag says what its label says; at the last two it says nothing.
TAGS: Final = {"site-0": 0.9, "site-1": 0.9, "site-2": 0.9, "site-3": 0.5, UNSEEN: 0.5}
_EDGE: Final = DESCENT.preprocessing.rows


def tagged(seed: int) -> dict[str, Dataset]:
    """Noise of 8 x 8 pixels with a faint patch where there is a finding, and a tag in a corner or none."""
    return {
        site: _tagged(np.random.default_rng((seed, i)), share) for i, (site, share) in enumerate(TAGS.items())
    }


def elsewhere(make: Makes, task: TaskSpec) -> Callable[[int, Trial], float]:
    """Return what trains without the unseen site, and measures all its cases."""

    def measure(seed: int, trial: Trial) -> float:
        sites, mine = make(seed), trial.task(task)
        others = {name: one for name, one in sites.items() if name != UNSEEN}
        weights = simulate(mine, others, rounds=ROUNDS, **trial.options(seed)).weights
        return area(unseen_metrics(mine, trial.strategy, weights, {UNSEEN: held_out(sites[UNSEEN])}))

    return measure


def _tagged(generator: np.random.Generator, share: float) -> Dataset:
    count = TAGGED_TRAIN + TAGGED_HELD_OUT
    labels = np.arange(count, dtype=np.uint8) % 2
    says = np.where(generator.random(count) < share, labels, 1 - labels)
    x = generator.normal(size=(count, 1, _EDGE, _EDGE)).astype(np.float32)
    x[labels == 1, :, 3:7, 3:7] += np.float32(0.4)
    x[says == 1, :, :2, :2] += np.float32(2.0)
    return Dataset(
        Samples(x[:TAGGED_TRAIN], labels[:TAGGED_TRAIN]), Samples(x[TAGGED_TRAIN:], labels[TAGGED_TRAIN:])
    )


_RATES: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_LENGTH: Final = f"{ROUNDS} rounds of {DESCENT.local.local_steps} steps"
SHORTCUT: Final = Claim(
    "An unseen site without the shortcut that most sites share",
    f"Drawn noise of {_EDGE} x {_EDGE} pixels with a faint patch where there is a finding, and a tag in a\n"
    f"corner or none: at three sites it agrees with the label in {TAGS['site-0']:.0%} of all cases, at the\n"
    f"fourth and at the unseen one by chance. `linear`, {_LENGTH}.\n"
    "The set was made for what the strategy is to do: to leave out what some sites\n"
    "alone gain from.",
    elsewhere(tagged, DESCENT),
    {
        "fedavg": grid("fedavg", _RATES),
        "domain-generalisation": grid("domain-generalisation", _RATES, reach=(0.5, 1.0, 3.0, 10.0)),
    },
)
