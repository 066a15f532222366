"""A federation on one machine: the sites' local rounds and the strategy, one after the other in this process.

It is an in-process loop over the same pure functions that a real federation runs (:func:`local_round`,
the strategies, the check of updates): nothing is sent. :mod:`trainer.engine.simulator` runs the same through
the federation engine's simulator, and comes to the same model; admission and faults are left to real ones.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer import attendance, peers, strategies
from trainer.compression import draw_of
from trainer.compression.spec import taken_over
from trainer.compression.steps import WayBack
from trainer.datasets import Dataset, Samples
from trainer.encryption.spec import check_strategy
from trainer.errors import StrategyError
from trainer.first_model import first_model
from trainer.local_round import LocalUpdate, Packing, evaluate, local_round
from trainer.measuring import AnyMetrics, read_metrics
from trainer.optimisation import seed_of
from trainer.ports import silent
from trainer.privacy.noise import SeededNoise
from trainer.site_rules import site_rule
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.compression import Compression
    from trainer.encryption.simulated import Consortium
    from trainer.ports import Progress
    from trainer.privacy.promise import Promise
    from trainer.task import TaskSpec
    from trainer.weights_io import Weights


@dataclass(frozen=True)
class SiteRecord:
    """One site's part of one round; ``metrics`` are of the incoming global model.

    ``update_bytes`` leave the site, ``model_bytes`` come to it: safetensors files, as they are sent.

    ``weight`` is the site's in the mean where the strategy decides over it.
    ``anomaly_score`` is that of :func:`trainer.strategies.anomaly_scores`, None below four sites.
    """

    samples: int
    update_bytes: int
    model_bytes: int
    update_norm: float
    train_loss: float
    train_seconds: float
    metrics: AnyMetrics
    anomaly_score: float | None = None
    weight: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {**asdict(self), "metrics": self.metrics.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SiteRecord:
        """Read what :meth:`to_json` wrote."""
        return cls(**{**content, "metrics": read_metrics(content["metrics"])})


@dataclass(frozen=True)
class Traffic:
    """What a site sent and received in a round in which it did not train, in bytes."""

    sent: int
    received: int


@dataclass(frozen=True)
class RoundRecord:
    """One finished round; ``number`` counts from 1, ``sites`` are those that trained.

    Between peers: ``led_by`` brought models together where one site did, ``others`` sent or received
    without training, ``away`` did not answer.
    """

    number: int
    seconds: float
    sites: Mapping[str, SiteRecord]
    led_by: str = ""
    others: Mapping[str, Traffic] = field(default_factory=dict)
    away: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Simulation:
    """The final global model, what it came from, and its metrics at each site."""

    weights: Weights
    rounds: tuple[RoundRecord, ...]
    final: Mapping[str, AnyMetrics]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values, without the weights."""
        return {
            "rounds": [asdict(record) for record in self.rounds],
            "final": {site: metrics.to_json() for site, metrics in self.final.items()},
        }


def simulate(  # noqa: PLR0913 - all that the same model depends on
    task: TaskSpec,
    datasets: Mapping[str, Dataset],
    *,
    rounds: int,
    strategy: str = "fedavg",
    parameters: Mapping[str, Any] | None = None,
    initial: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
    privacy: Promise | None = None,
    compression: Compression | None = None,
    encrypted: bool = False,
    away: Mapping[int, Collection[str]] | None = None,
    progress: Progress = silent,
) -> Simulation:
    """Run a federation of these sites; the same arguments give the same model on the same machine.

    Parameters
    ----------
    task : TaskSpec
        What is learned.
    datasets : Mapping
        Site name to its dataset.
    rounds : int
        At least 1.
    strategy, parameters : str, Mapping
        Of :data:`trainer.peers.NAMES`.
    initial : Mapping, optional
        An earlier run's global model to start from.
    seed : int
        Of the initial model, of all local rounds, and of the noise.
    privacy : Promise, optional
        How the sites protect their updates.
    compression : Compression, optional
        How the sites make their updates small.
    encrypted : bool
        Whether updates are summed encrypted; the scheme's noise makes no two models equal then.
    away : Mapping, optional
        By number of round, the sites that do not answer in it.
    progress : Progress
        Called with stage ``round`` after each round.
    """
    parameters = parameters or {}
    peers.terms(strategy).check_parameters(parameters)
    if rounds < 1 or not datasets:
        raise StrategyError("nothing to simulate; expected at least one round and one site")
    weights: Weights = first_model(task, strategy, seed, initial)
    if encrypted:
        check_strategy(strategy)
    if strategy in peers.PEERS:
        from trainer.peer_simulation import Scene, run  # noqa: PLC0415 - it is built on this module

        scene = Scene(task, datasets, strategy, parameters, seed, privacy, compression, away or {})
        return run(scene, weights, rounds, progress)
    chosen = strategies.get(strategy)
    state: dict[str, Any] = {}
    own: dict[str, Weights] = {}
    sealed = _consortium(weights, strategy, parameters, compression) if encrypted else None
    way_back = WayBack.of(compression, seed, readable=not encrypted)
    records = []
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        updates, sites = {}, {}
        gone, there = attendance.split(away or {}, number, datasets)
        for site in chosen.participants(number, there, seed, state):
            update, sites[site] = site_round(
                task,
                weights,
                datasets[site],
                site=site,
                number=number,
                strategy=strategy,
                parameters=parameters,
                own=own.get(site),
                seed=seed,
                privacy=privacy,
                compression=compression,
            )
            own[site] = update.own
            updates[site] = update
        if sealed is None:
            after, state, sites = _aggregated(chosen, weights, updates, state, parameters, sites)
            for site, came in way_back.bytes_to(sites).items():
                sites[site] = replace(sites[site], model_bytes=came)
            weights = way_back.moved(number, weights, after, sites)
        else:
            came = sealed.model_bytes
            weights, left = sealed.round(number, updates)
            sites = {
                site: replace(one, update_bytes=left[site], model_bytes=came) for site, one in sites.items()
            }
        records.append(RoundRecord(number, time.perf_counter() - started, sites, away=gone))
        progress("round", number, rounds)
    return Simulation(weights, tuple(records), final_metrics(task, strategy, weights, own, datasets))


def _aggregated(
    chosen: strategies.Strategy,
    weights: Weights,
    updates: Mapping[str, LocalUpdate],
    state: Mapping[str, Any],
    parameters: Mapping[str, Any],
    sites: Mapping[str, SiteRecord],
) -> tuple[Weights, dict[str, Any], dict[str, SiteRecord]]:
    """Aggregate as a coordinator does that reads updates."""
    contributions = [
        strategies.Contribution(site, update.delta, update.samples) for site, update in updates.items()
    ]
    weights, after = chosen.aggregate(weights, contributions, state, parameters)
    scores, shares = strategies.anomaly_scores(contributions), strategies.site_weights(after)
    judged = {
        site: replace(one, anomaly_score=scores.get(site), weight=shares.get(site))
        for site, one in sites.items()
    }
    return weights, after, judged


def _consortium(
    weights: Weights, strategy: str, parameters: Mapping[str, Any], compression: Compression | None
) -> Consortium:
    from trainer.encryption.simulated import Consortium  # noqa: PLC0415 - the scheme loads here

    return Consortium(weights, strategy, parameters, compression)


def final_metrics(
    task: TaskSpec,
    strategy: str,
    weights: Mapping[str, NDArray[Any]],
    own: Mapping[str, Mapping[str, NDArray[Any]]],
    datasets: Mapping[str, Dataset],
) -> dict[str, AnyMetrics]:
    """Measure at each site what it makes of the final global model with what it kept."""
    rule = site_rule(strategy)
    kept = {site: taken_over(own.get(site, {}), counted=True)[0] for site in datasets}
    return {
        site: evaluate(task, rule.deployed(task, weights, kept[site], trained=True), dataset)
        for site, dataset in datasets.items()
    }


def held_out(dataset: Dataset) -> Dataset:
    """Return a site that trains nothing: all its cases are there to measure on."""
    return Dataset(
        train=Samples(dataset.train.x[:0], dataset.train.y[:0]),
        validation=Samples.join([dataset.train, dataset.validation]),
        skipped=dataset.skipped,
    )


def unseen_metrics(
    task: TaskSpec, strategy: str, weights: Mapping[str, NDArray[Any]], datasets: Mapping[str, Dataset]
) -> dict[str, AnyMetrics]:
    """Measure the global model where nobody trained, on the held-out cases of each dataset.

    Raises
    ------
    StrategyError
        If a site has no model without having trained, as under FedBN.
    """
    return final_metrics(task, strategy, weights, {}, datasets)


def bytes_by_site(rounds: Sequence[RoundRecord]) -> dict[str, dict[str, int]]:
    """Return what each site sent and received in all rounds together, in bytes."""
    totals: dict[str, dict[str, int]] = {}
    for record in rounds:
        for site, one in record.sites.items():
            total = totals.setdefault(site, {"sent": 0, "received": 0})
            total["sent"] += one.update_bytes
            total["received"] += one.model_bytes
        for site, other in record.others.items():
            total = totals.setdefault(site, {"sent": 0, "received": 0})
            total["sent"] += other.sent
            total["received"] += other.received
    return totals


def site_round(  # noqa: PLR0913 - as local_round
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    dataset: Dataset,
    *,
    site: str,
    number: int,
    strategy: str,
    parameters: Mapping[str, Any],
    own: Mapping[str, NDArray[Any]] | None = None,
    seed: int,
    privacy: Promise | None = None,
    compression: Compression | None = None,
) -> tuple[LocalUpdate, SiteRecord]:
    """Do one site's local round of a simulation, and say how it went."""
    update = local_round(
        task,
        weights,
        dataset,
        strategy=strategy,
        strategy_parameters=parameters,
        own=own,
        number=number,
        seed=round_seed(seed, site, number),
        privacy=privacy,
        noise=SeededNoise(seed_of("noise", seed, site, number)),
        packing=None if compression is None else Packing(compression, draw_of(seed, site, number)),
    )
    record = SiteRecord(
        samples=update.samples,
        update_bytes=len(to_bytes(update.leaving)),
        model_bytes=len(to_bytes(weights)),
        update_norm=update.delta_norm,
        train_loss=update.train_loss,
        train_seconds=update.train_seconds,
        metrics=update.metrics,
    )
    return update, record


def round_seed(seed: int, site: str, number: int) -> int:
    """Return the seed of a site's local round, as simulated and real federations both take it."""
    return seed_of("round", seed, site, number)
