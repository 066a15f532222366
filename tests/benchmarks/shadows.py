"""Federations on random halves of each site's cases, and what every attack says of every case."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.benchmarks import attacks
from tests.benchmarks.skewed_sites import two_hospitals
from trainer import strategies
from trainer.datasets import Dataset, Samples
from trainer.first_model import first_model
from trainer.networks import build
from trainer.simulation import final_metrics, site_round
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.privacy.promise import Promise
    from trainer.task import TaskSpec
    from trainer.weights_io import Weights

    Scores = dict[str, NDArray[np.float64]]

FINAL: Final = "final model"
RISE: Final = "site's model: rise"
COSINE: Final = "site's update: cosine"
SUM_COSINE: Final = "sum of updates: cosine"
VIEWS: Final = (FINAL, RISE, COSINE, SUM_COSINE)


def sites_of(seed: int) -> tuple[dict[str, Samples], dict[str, Dataset], NDArray[np.bool_]]:
    """Return each site's cases, the random half that it trains on, and who is in it, sites in order."""
    generator = np.random.default_rng(seed)
    everybody = {site: Samples.join([one.train, one.validation]) for site, one in two_hospitals(0).items()}
    chosen, sites = [], {}
    for site, cases in everybody.items():
        inside = np.zeros(len(cases), dtype=bool)
        inside[generator.permutation(len(cases))[: len(cases) // 2]] = True
        chosen.append(inside)
        people = tuple(f"{site}-{i}" for i in np.flatnonzero(inside))
        sites[site] = Dataset(
            Samples(cases.x[inside], cases.y[inside], people), Samples(cases.x[~inside], cases.y[~inside])
        )
    return everybody, sites, np.concatenate(chosen)


def watched(
    task: TaskSpec,
    everybody: Mapping[str, Samples],
    sites: Mapping[str, Dataset],
    rounds: int,
    seed: int,
    privacy: Promise | None,
) -> tuple[Scores, float]:
    """Run a federation by FedAvg as its simulation does; return each view's scores, and the model's AUC.

    A site's cases are judged by its own updates, in the order of the sites; higher is likelier a member.
    """
    names = [name for name, _ in build(task.network).named_parameters()]
    weights: Weights = first_model(task, "fedavg", seed)
    chosen, state = strategies.get("fedavg"), dict[str, Any]()
    seen = {view: np.zeros(sum(map(len, everybody.values()))) for view in VIEWS}
    for number in range(1, rounds + 1):
        updates = {
            site: site_round(
                task,
                weights,
                one,
                site=site,
                number=number,
                strategy="fedavg",
                parameters={},
                seed=seed,
                privacy=privacy,
            )[0]
            for site, one in sites.items()
        }
        sent = [strategies.Contribution(site, one.delta, one.samples) for site, one in updates.items()]
        after, state = chosen.aggregate(weights, sent, state, {})
        moved, at = difference(after, weights), 0
        for site, cases in everybody.items():
            part, delta = slice(at, at + len(cases)), updates[site].delta
            at = part.stop
            slopes = attacks.gradients(task, weights, cases)
            seen[COSINE][part] += attacks.alignment(slopes, delta, names)
            seen[SUM_COSINE][part] += attacks.alignment(slopes, moved, names)
            local = {name: weights[name] + delta[name] for name in weights}
            seen[RISE][part] += attacks.confidence(task, local, cases)
            seen[RISE][part] -= attacks.confidence(task, weights, cases)
        weights = after
    seen[FINAL] = np.concatenate([attacks.confidence(task, weights, cases) for cases in everybody.values()])
    final = final_metrics(task, "fedavg", weights, {}, sites)
    return seen, mean(one.auc.estimate for one in final.values() if one.auc is not None)
