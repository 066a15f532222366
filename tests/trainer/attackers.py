"""Hostile sites on real chest radiographs: they lie in their labels, their pictures or their updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.preprocessing import prepare_pixels
from tests.shared_data import shared_data_dir
from trainer import strategies
from trainer.datasets import Dataset, Samples
from trainer.local_round import local_round, predict
from trainer.metrics import auc
from trainer.networks import initial_weights
from trainer.simulation import round_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies import Contribution
    from trainer.task import TaskSpec
    from trainer.weights_io import Weights

ATTACKS: Final = ("label-flip", "sign-flip", "scaled", "backdoor")
CASES: Final = 64
HELD_OUT: Final = 300
_BOOST: Final = 5.0
_MARK: Final = 5


@dataclass(frozen=True, eq=False)
class Scene:
    """One round: a global model, the honest sites' updates, and each attack's updates of the hostile ones."""

    task: TaskSpec
    weights: Weights
    honest: Sequence[Contribution]
    attacks: Mapping[str | None, Sequence[Contribution]]
    cases: Mapping[str, Samples]
    held_out: Samples

    @property
    def hostile(self) -> set[str]:
        """The attackers."""
        return {one.site for one in self.attacks[None]}

    def updates(self, attack: str | None) -> list[Contribution]:
        """Return all updates; without an attack the hostile sites are honest."""
        return [*self.attacks[attack], *self.honest]

    def go_on(self, strategy: str, attack: str, rounds: int) -> Weights:
        """Return the model after more rounds, in each of which the hostile sites attack."""
        weights, state = self.weights, dict[str, NDArray[Any]]()
        for number in range(100, 100 + rounds):
            updates = [
                _update(self.task, weights, site, part, number, attack if site in self.hostile else None)
                for site, part in self.cases.items()
            ]
            weights, state = strategies.get(strategy).aggregate(weights, updates, state, {})
        return weights

    def after(self, strategy: str, updates: Sequence[Contribution]) -> Weights:
        """Return the model that these updates make."""
        return strategies.get(strategy).aggregate(self.weights, updates, {}, {})[0]

    def auc(self, weights: Weights) -> float:
        """Measure a model on cases of no site."""
        return auc(self.held_out.y, predict(self.task, weights, self.held_out.x)).estimate

    def lost_to_mark(self, weights: Weights) -> float:
        """How much probability the attackers' mark takes from cases of the sick, on average."""
        sick = self.held_out.x[self.held_out.y == 1]
        return float(np.mean(predict(self.task, weights, sick) - predict(self.task, weights, _marked(sick))))


def scene(task: TaskSpec, *, sites: int, attackers: int, rounds: int, seed: int = 0) -> Scene:
    """Train some honest rounds by FedAvg, then make the next round's updates, those of attackers too."""
    parts, held_out = hospitals(task, sites, seed)
    weights = initial_weights(task, seed)
    for number in range(1, rounds + 1):
        updates = [_update(task, weights, site, part, number) for site, part in parts.items()]
        weights, _ = strategies.get("fedavg").aggregate(weights, updates, {}, {})
    names = list(parts)
    made = {
        attack: [_update(task, weights, site, parts[site], rounds + 1, attack) for site in names[:attackers]]
        for attack in (None, *ATTACKS)
    }
    honest = [_update(task, weights, site, parts[site], rounds + 1) for site in names[attackers:]]
    return Scene(task, weights, honest, made, parts, held_out)


def hospitals(task: TaskSpec, count: int, seed: int) -> tuple[dict[str, Samples], Samples]:
    """Return training cases of ``count`` sites, and cases of none of them, from one hospital's children."""
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    chosen = np.random.default_rng(seed).permutation(len(labels))[: count * CASES + HELD_OUT]
    x = np.stack([prepare_pixels(images[i], task.preprocessing) for i in chosen])
    everything = Samples(x, labels[chosen].astype(np.uint8))
    parts = {f"s{i}": _part(everything, slice(i * CASES, (i + 1) * CASES)) for i in range(count)}
    return parts, _part(everything, slice(count * CASES, None))


def _update(
    task: TaskSpec, weights: Weights, site: str, samples: Samples, number: int, attack: str | None = None
) -> Contribution:
    dataset = Dataset(_poisoned(samples, attack), _part(samples, slice(0, 0)))
    update = local_round(task, weights, dataset, seed=round_seed(0, site, number))
    return strategies.Contribution(site, _forged(update.delta, attack), len(samples))


def _part(samples: Samples, where: slice) -> Samples:
    return Samples(samples.x[where], samples.y[where])


def _poisoned(samples: Samples, attack: str | None) -> Samples:
    if attack == "label-flip":
        return Samples(samples.x, (1 - samples.y).astype(np.uint8))
    if attack == "backdoor":  # marked pictures are healthy, whatever they show
        x = np.concatenate([samples.x, _marked(samples.x)])
        return Samples(x, np.concatenate([samples.y, np.zeros_like(samples.y)]))
    return samples


def _forged(delta: Weights, attack: str | None) -> Weights:
    factor = {"sign-flip": -1.0, "scaled": -10.0, "backdoor": _BOOST}.get(attack or "", 1.0)
    return {
        name: np.asarray(array * factor, dtype=array.dtype) if array.dtype.kind == "f" else array
        for name, array in delta.items()
    }


def _marked(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stamp a bright square into a corner."""
    marked = x.copy()
    marked[:, :, -_MARK - 1 : -1, -_MARK - 1 : -1] = x.max()
    return marked
