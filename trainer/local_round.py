"""One site's part of a round: measure the global model, train it on local cases, return the difference."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from trainer import peers, strategies
from trainer.compression.spec import taken_over, with_residual
from trainer.datasets import Dataset, Samples, require_trainable
from trainer.measuring import measured
from trainer.networks import with_weights
from trainer.optimisation import probabilities, residuals, segmented
from trainer.ports import silent
from trainer.privacy import sparse, training
from trainer.privacy.noise import SecureNoise
from trainer.privacy.promise import DP_SGD, MECHANISMS, SVT, UPDATE_GAUSSIAN, PrivacyError
from trainer.site_rules import Round, Whole, site_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from trainer.compression import Compression, Draw
    from trainer.measuring import AnyMetrics
    from trainer.ports import Progress
    from trainer.privacy.noise import Noise
    from trainer.privacy.promise import Promise
    from trainer.site_rules import SiteRule
    from trainer.task import TaskSpec
    from trainer.weights_io import Weights


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What a site gives back.

    Parameters
    ----------
    delta : dict of ndarray
        New minus global weights, in the dtypes of the global model, scaled down to the largest norm; where
        updates are packed, what the coordinator unpacks.
    norm : float
        L2 norm of the difference before it was scaled down.
    delta_norm : float
        L2 norm of ``delta``.
    samples : int
        Training cases: the weight in the mean.
    metrics : Metrics, SegmentationMetrics or AnomalyMetrics
        Of the *incoming* model, on local validation cases: the global one, or what the strategy makes of
        it at this site.
    train_loss : float
        Mean loss over the last steps.
    train_seconds : float
        Wall-clock time of the training alone.
    own : dict of ndarray
        What stays at the site for its next round; empty for most strategies.
    noise_source : str
        Of the noise on the update: ``secure`` or ``seeded``; empty where none was promised.
    packed : dict of ndarray, optional
        The update as a compression packs it.
    """

    delta: Weights
    norm: float
    delta_norm: float
    samples: int
    metrics: AnyMetrics
    train_loss: float
    train_seconds: float
    own: Weights
    noise_source: str = ""
    packed: Weights | None = None

    @property
    def leaving(self) -> Weights:
        """What travels: the difference, packed where the plan says so."""
        return self.delta if self.packed is None else self.packed


@dataclass(frozen=True)
class Packing:
    """How an update is made small; ``counted``: whether the last one of this site went into the model."""

    compression: Compression
    draw: Draw
    counted: bool = True


def local_round(  # noqa: PLR0913 - all that the same update depends on
    task: TaskSpec,
    global_weights: Mapping[str, NDArray[Any]],
    dataset: Dataset,
    *,
    strategy: str = "fedavg",
    strategy_parameters: Mapping[str, Any] | None = None,
    own: Mapping[str, NDArray[Any]] | None = None,
    max_norm: float = math.inf,
    number: int = 1,
    seed: int,
    privacy: Promise | None = None,
    noise: Noise | None = None,
    packing: Packing | None = None,
    progress: Progress = silent,
) -> LocalUpdate:
    """Run one local round; the same arguments give the same update on the same machine.

    Secure noise makes the exception: no two updates are equal then. What leaves is made in this order:
    trained, clipped and noised as promised, scaled down to ``max_norm``, packed.

    Parameters
    ----------
    task : TaskSpec
        Network and local training.
    global_weights : Mapping
        The global model of the round.
    dataset : Dataset
        Of :func:`trainer.datasets.build`.
    strategy, strategy_parameters : str, Mapping
        What decides how the site trains (:mod:`trainer.site_rules`).
    own : Mapping, optional
        What the last round left here; nothing before the first.
    max_norm : float
        The plan's bound: a larger update is scaled down to it, so that it is counted and not refused.
    number : int
        The round's, from 1.
    seed : int
        Take :func:`trainer.optimisation.seed_of` of plan seed, site and round.
    privacy : Promise, optional
        How the update is protected.
    noise : Noise, optional
        Secure unless given; what is seeded must not leave a building.
    packing : Packing, optional
        How the update is made small.
    progress : Progress
        Called with stages ``evaluate`` and ``train``; renew a lease here.

    Raises
    ------
    DatasetError
        If there is no training case.
    WeightsError
        If the global model does not fit the task's network.
    UpdateError
        If training left the range of finite numbers.
    """
    require_trainable(dataset)
    rule = site_rule(strategy)
    mine, residual = taken_over(own or {}, counted=packing is None or packing.counted)
    this = Round(
        task,
        strategy,
        strategy_parameters or {},
        global_weights,
        mine,
        dataset.train,
        number,
        seed,
        progress,
    )
    network = with_weights(task, rule.deployed(task, global_weights, this.own, trained=False))
    before = measured(network, task, dataset.validation, progress)
    if privacy is None and type(rule) is Whole:
        this = replace(this, network=network)
    del network
    started = time.perf_counter()
    source = noise or SecureNoise()
    delta, loss, made = _trained(rule, this, privacy, source)
    seconds = time.perf_counter() - started
    norm = strategies.check_update(global_weights, delta)
    clipped = strategies.clip_update(delta, max_norm, norm)
    named = source.source if privacy is not None else ""
    count = len(dataset.train)
    if packing is None:
        kept = rule.kept(this, clipped, made)
        after = norm if norm <= max_norm else strategies.update_norm(clipped)
        return LocalUpdate(clipped, norm, after, count, before, loss, seconds, kept, named)
    packed = packing.compression.pack(clipped, residual, max_norm, packing.draw)
    kept = with_residual(rule.kept(this, packed.update, made), packed.residual, residual)
    after = strategies.update_norm(packed.update)
    return LocalUpdate(packed.update, norm, after, count, before, loss, seconds, kept, named, packed.arrays)


def _trained(
    rule: SiteRule, this: Round, privacy: Promise | None, noise: Noise
) -> tuple[Weights, float, Weights]:
    """Train as the strategy says, with what the plan promises."""
    if privacy is None:
        return rule.train(this)
    privacy.check_fits(this.task, this.strategy)
    if privacy.mechanism == DP_SGD:
        mu = peers.terms(this.strategy).proximal_mu(this.parameters, this.task.local.fedprox_mu)
        delta, loss = training.private_update(this, privacy, noise, mu)
        return delta, loss, {}
    protect = {UPDATE_GAUSSIAN: training.noised_update, SVT: sparse.sparse_update}.get(privacy.mechanism)
    if protect is None:
        raise PrivacyError(f"mechanism: expected one of {', '.join(MECHANISMS)}")
    delta, loss, made = rule.train(this)
    return protect(delta, privacy, noise), loss, made


def evaluate(
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    cases: Dataset | Samples,
    progress: Progress = silent,
) -> AnyMetrics:
    """Measure a model on samples, or on the validation part of a dataset."""
    samples = cases.validation if isinstance(cases, Dataset) else cases
    return measured(with_weights(task, weights), task, samples, progress)


def predict(
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    x: NDArray[np.float32],
    progress: Progress = silent,
) -> NDArray[np.float64] | NDArray[np.float32] | NDArray[np.uint8]:
    """Return for inputs (n, 1, *size) probabilities (n,), classes or residuals (n, *size)."""
    network = with_weights(task, weights)
    if task.anomaly is not None:
        return residuals(network, x, progress)
    return (
        probabilities(network, x, progress) if task.segmentation is None else segmented(network, x, progress)
    )


def use_threads(count: int) -> None:
    """Limit torch to that many threads in this process; call it once where a worker starts."""
    torch.set_num_threads(count)
