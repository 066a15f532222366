"""A simulation between peers: a site has a model of its own; what it knows of others came in messages."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import attendance, peers, strategies
from trainer.errors import StrategyError
from trainer.local_round import evaluate
from trainer.peers import Call, Exchange, Message, Peer, Trained
from trainer.simulation import RoundRecord, Simulation, SiteRecord, Traffic, site_round

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trainer.compression import Compression
    from trainer.datasets import Dataset
    from trainer.peers import PeerRule
    from trainer.ports import Progress
    from trainer.privacy.promise import Promise
    from trainer.task import TaskSpec
    from trainer.weights_io import Array, Weights


@dataclass(frozen=True)
class Scene:
    """All that stays the same in a simulation; ``away`` names by round who does not answer."""

    task: TaskSpec
    datasets: Mapping[str, Dataset]
    strategy: str
    parameters: Mapping[str, Any]
    seed: int
    privacy: Promise | None
    compression: Compression | None
    away: Mapping[int, Collection[str]]

    @property
    def rule(self) -> PeerRule:
        """The rule between peers."""
        return peers.PEERS[self.strategy]


def run(scene: Scene, start: Weights, rounds: int, progress: Progress) -> Simulation:
    """Run all rounds; see :func:`trainer.simulation.simulate`.

    The result's ``weights`` are the mean of all sites' models, by which nothing goes on: it is what a site
    that comes new would begin with. ``final`` is each site's own model on its own cases.

    Raises
    ------
    StrategyError
        If updates are to be packed where none are sent.
    """
    if scene.compression is not None:
        if not scene.rule.one_model:
            raise StrategyError(f"compression packs updates; {scene.strategy} sends none")
        scene.compression.check_fits(readable=False)
    held = {site: Peer(start, len(data.train), start) for site, data in scene.datasets.items()}
    own: dict[str, Mapping[str, Array]] = {}
    records = []
    for number in range(1, rounds + 1):
        held, own, record = _round(scene, held, own, number)
        records.append(record)
        progress("round", number, rounds)
    final = {site: evaluate(scene.task, held[site].weights, data) for site, data in scene.datasets.items()}
    return Simulation(_mean(scene.rule, held), tuple(records), final)


def _round(
    scene: Scene, held: Mapping[str, Peer], own: Mapping[str, Mapping[str, Array]], number: int
) -> tuple[dict[str, Peer], dict[str, Mapping[str, Array]], RoundRecord]:
    started = time.perf_counter()
    gone, there = attendance.split(scene.away, number, scene.datasets)
    call = Call(number, there, scene.seed, scene.parameters)
    before = scene.rule.gather(call, held)
    held = {**held, **before.peers}
    trained, sites, kept = [], {}, dict(own)
    for site in scene.rule.participants(call):
        one, sites[site], kept[site] = _train(scene, site, held[site], own.get(site), number)
        trained.append(one)
    after = scene.rule.spread(call, held, trained)
    if scene.rule.one_model:
        scores = strategies.anomaly_scores([one.contribution for one in trained])
        sites = {site: replace(one, anomaly_score=scores.get(site)) for site, one in sites.items()}
    sites, others = _with_traffic(sites, (*before.messages, *after.messages))
    seconds = time.perf_counter() - started
    record = RoundRecord(number, seconds, sites, _leader(before, after), others, gone)
    return {**held, **after.peers}, kept, record


def _train(
    scene: Scene, site: str, peer: Peer, own: Mapping[str, Array] | None, number: int
) -> tuple[Trained, SiteRecord, Mapping[str, Array]]:
    update, record = site_round(
        scene.task,
        peer.weights,
        scene.datasets[site],
        site=site,
        number=number,
        strategy=scene.strategy,
        parameters=scene.parameters,
        own=own,
        seed=scene.seed,
        privacy=scene.privacy,
        compression=scene.compression,
    )
    contribution = strategies.Contribution(site, update.delta, update.samples)
    return Trained(contribution, update.leaving), record, update.own


def _leader(before: Exchange, after: Exchange) -> str:
    return after.led_by or before.led_by


def _with_traffic(
    sites: Mapping[str, SiteRecord], messages: Sequence[Message]
) -> tuple[dict[str, SiteRecord], dict[str, Traffic]]:
    """Count bytes at the sites that trained, and at those that did not."""
    sent: Counter[str] = Counter()
    received: Counter[str] = Counter()
    for message in messages:
        size = message.size
        sent[message.sender] += size
        received[message.receiver] += size
    counted = {
        site: replace(one, update_bytes=sent[site], model_bytes=received[site]) for site, one in sites.items()
    }
    silent = sorted((set(sent) | set(received)) - set(sites))
    return counted, {site: Traffic(sent[site], received[site]) for site in silent}


def _mean(rule: PeerRule, held: Mapping[str, Peer]) -> Weights:
    """Return the mean of all models that were trained."""
    names = [site for site in sorted(held) if held[site].version] or sorted(held)
    counts = np.array([held[site].samples if rule.weighs_samples else 1 for site in names], dtype=np.float64)
    if rule.one_model:  # whoever was away in the last round holds an older one
        newest = max(names, key=lambda site: held[site].version)
        return dict(held[newest].weights)
    models = [held[site].weights for site in names]
    return peers.blend(models[0], models, [float(share) for share in counts / counts.sum()])
