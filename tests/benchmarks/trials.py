"""What a claim of a paper is made of: trials over a grid, sites, and the figure that decides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.metrics import Metrics
from trainer.optimisation import seed_of
from trainer.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from trainer.datasets import Dataset
    from trainer.measuring import AnyMetrics
    from trainer.simulation import Simulation
    from trainer.task import TaskSpec

    Makes = Callable[[int], dict[str, Dataset]]

LOG_LOSS: Final = "log loss"


@dataclass(frozen=True)
class Trial:
    """One choice of parameters; ``rate`` and ``steps`` are the sites' own, None those of the task."""

    strategy: str = "fedavg"
    parameters: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None
    steps: int | None = None

    def options(self, seed: int) -> dict[str, Any]:
        """Return what a simulation takes of it."""
        return {"strategy": self.strategy, "parameters": self.parameters, "seed": seed}

    def told(self) -> str:
        """Return the choice in words."""
        own = {"learning_rate": self.rate, "local_steps": self.steps}
        chosen = {name: value for name, value in own.items() if value is not None}
        return ", ".join(f"{name} {value:g}" for name, value in {**chosen, **self.parameters}.items())

    def task(self, task: TaskSpec) -> TaskSpec:
        """Return the task as this trial trains it."""
        local = task.local
        rate, steps = self.rate or local.learning_rate, self.steps or local.local_steps
        return replace(task, local=replace(local, learning_rate=rate, local_steps=steps))


@dataclass(frozen=True)
class Claim:
    """Where a strategy should be better; the first of ``entrants`` is what the others have to beat.

    ``figure`` names what ``measure`` returns; ``less`` says that less of it is better.
    """

    title: str
    about: str
    measure: Callable[[int, Trial], float]
    entrants: Mapping[str, tuple[Trial, ...]]
    figure: str = "AUC"
    less: bool = False


@dataclass(frozen=True)
class Part:
    """Claims that are measured together: on ``seeds``, with parameters chosen on ``tuning``."""

    title: str
    about: str
    claims: tuple[Claim, ...]
    seeds: range
    tuning: range


def grid(
    strategy: str,
    rates: Iterable[float | None] = (None,),
    *,
    steps: Iterable[int | None] = (None,),
    **values: Iterable[float],
) -> tuple[Trial, ...]:
    """Return the trials of all combinations."""
    combined: list[dict[str, float]] = [{}]
    for name, choices in values.items():
        combined = [{**one, name: value} for one in combined for value in choices]
    return tuple(
        Trial(strategy, one, rate, count) for count in tuple(steps) for rate in rates for one in combined
    )


def trained(make: Makes, task: TaskSpec, rounds: int) -> Callable[[int, Trial], float]:
    """Return what measures the final model at the sites that trained it."""

    def measure(seed: int, trial: Trial) -> float:
        return area(simulate(trial.task(task), make(seed), rounds=rounds, **trial.options(seed)).final)

    return measure


def rounds_to(
    target: float, make: Makes, task: TaskSpec, rounds: int, taking_part: int = 0
) -> Callable[[int, Trial], float]:
    """Return what counts rounds until the held-out log loss is at most ``target``; one more than all if not.

    All sites have the same held-out cases. ``taking_part`` sites are drawn for each round, 0: all take part.
    """

    def measure(seed: int, trial: Trial) -> float:
        losses = loss_by_round(_simulated(make, task, rounds, taking_part, seed, trial))
        return next((float(i) for i, loss in enumerate(losses) if loss <= target), rounds + 1.0)

    return measure


def lately(
    last: int, make: Makes, task: TaskSpec, rounds: int, taking_part: int = 0
) -> Callable[[int, Trial], float]:
    """Return what takes the mean of the held-out log loss after each of the last rounds."""

    def measure(seed: int, trial: Trial) -> float:
        return mean(loss_by_round(_simulated(make, task, rounds, taking_part, seed, trial))[-last:])

    return measure


def loss_by_round(result: Simulation) -> list[float]:
    """Return the log loss of the first model and of each round's; sites have the same held-out cases."""
    measured = [next(iter(one.sites.values())).metrics for one in result.rounds]
    return [_loss(one) for one in (*measured, next(iter(result.final.values())))]


def absences(sites: Iterable[str], taking_part: int, rounds: int, seed: int) -> dict[int, Collection[str]]:
    """Draw who does not take part in each round; nobody where ``taking_part`` is 0."""
    names = sorted(sites)
    if not taking_part:
        return {}
    generator = np.random.default_rng(seed_of("absences", seed))
    gone = len(names) - taking_part
    return {
        number: frozenset(generator.choice(names, gone, replace=False).tolist())
        for number in range(1, rounds + 1)
    }


def area(by_site: Mapping[str, AnyMetrics]) -> float:
    """Return the mean AUC over sites."""
    return mean(one.auc.estimate for one in by_site.values() if one.auc is not None)


def _simulated(
    make: Makes, task: TaskSpec, rounds: int, taking_part: int, seed: int, trial: Trial
) -> Simulation:
    sites = make(seed)
    away = absences(sites, taking_part, rounds, seed)
    return simulate(trial.task(task), sites, rounds=rounds, away=away, **trial.options(seed))


def _loss(metrics: AnyMetrics) -> float:
    if not isinstance(metrics, Metrics) or metrics.log_loss is None:
        raise ValueError("no log loss; expected a task of labels, and held-out cases at every site")
    return metrics.log_loss
