"""What a federation is compared with: each site alone, and all data in one place (which only a study may do).

Both get the update budget of the federation: a site alone takes the steps that it takes in all rounds
together; the pooled model takes those of all sites. Sampling, augmentation, loss, optimizer are the same.

>>> locals_ = {name: train_local(task, dataset, rounds=10, seed=0) for name, dataset in datasets.items()}
>>> pooled = train_pooled(task, datasets, rounds=10, seed=0)
>>> table = cross_evaluate(task, {"global": weights, "pooled": pooled, **locals_}, datasets)
>>> table["global"]["site-1"].auc.estimate, mean_auc(table["site-1"], leave_out="site-1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.datasets import Dataset, Samples, require_trainable
from trainer.local_round import evaluate
from trainer.networks import initial_weights, weights_of, with_weights
from trainer.optimisation import Budget, seed_of, train
from trainer.ports import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.measuring import AnyMetrics
    from trainer.ports import Progress
    from trainer.task import TaskSpec
    from trainer.weights_io import Weights


def train_local(
    task: TaskSpec, dataset: Dataset, *, rounds: int, seed: int, progress: Progress = silent
) -> Weights:
    """Train on one site's training cases: ``rounds`` times ``task.local.local_steps`` steps."""
    require_trainable(dataset)
    steps = rounds * task.local.local_steps
    return _train_from_scratch(task, dataset.train, steps, seed, progress)


def train_pooled(
    task: TaskSpec, datasets: Mapping[str, Dataset], *, rounds: int, seed: int, progress: Progress = silent
) -> Weights:
    """Train on the training cases of all sites: as many steps as all sites take together."""
    ordered = [datasets[name] for name in sorted(datasets)]
    pooled = Samples.join([dataset.train for dataset in ordered])
    require_trainable(Dataset(pooled, pooled))
    steps = rounds * task.local.local_steps * len(ordered)
    return _train_from_scratch(task, pooled, steps, seed, progress)


def cross_evaluate(
    task: TaskSpec,
    models: Mapping[str, Mapping[str, NDArray[Any]]],
    datasets: Mapping[str, Dataset],
) -> dict[str, dict[str, AnyMetrics]]:
    """Measure every model on every site's validation cases: ``result[model][site]``."""
    return {
        model: {site: evaluate(task, weights, dataset) for site, dataset in datasets.items()}
        for model, weights in models.items()
    }


def mean_auc(by_site: Mapping[str, AnyMetrics], *, leave_out: str | None = None) -> float | None:
    """Return the mean AUC over sites; ``leave_out`` asks how a site's model does at the others.

    Sites without a positive or without a negative validation case have no AUC; with none left it is None.
    """
    values = [m.auc.estimate for site, m in by_site.items() if site != leave_out and m.auc is not None]
    return float(np.mean(values)) if values else None


def _train_from_scratch(
    task: TaskSpec, samples: Samples, steps: int, seed: int, progress: Progress
) -> Weights:
    network = with_weights(task, initial_weights(task, seed))
    train(
        network,
        samples,
        task.local,
        Budget(steps, task.local.batch_size),
        seed=seed_of("baseline", seed),
        proximal_mu=0.0,
        progress=progress,
    )
    return weights_of(network)
