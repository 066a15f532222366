"""What a coordinator holds in memory while it hands on what sites sent, in a process of its own.

The engine takes what is sent piece by piece; all sites fetch at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from nvflare.app_common.np.np_downloader import ArrayDownloadable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.federation import leading, relaying
from appliance.federation.answers import Answer
from appliance.federation.book import Checkpoint
from appliance.federation.mailroom import Mailroom
from appliance.federation.messages import SiteAnswer
from appliance.federation.shelf import Carriage, Shelf
from appliance.federation.wayback import whole
from tests.trainer.federation.plans import make_plan
from trainer.federation import aggregation
from trainer.federation.errors import AggregationError
from trainer.federation.peering.letters import Letter
from trainer.federation.peering.relay import Relay
from trainer.federation.plan import Strategy
from trainer.peers.dfedavgm import WHOLE
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ARRAYS = 16
NUMBERS = 2**17  # of an array: half a MiB


def model(site: int) -> dict[str, Any]:
    """Return a site's model."""
    return {f"layer{i}": np.full(NUMBERS, site + i / 100, np.float32) for i in range(ARRAYS)}


def fetched(parcels: Iterable[Mapping[str, Any]]) -> None:
    """Have every site fetch its parcel, all of them side by side."""
    held = [ArrayDownloadable(FLModelUtils.from_shareable(one).params, 2**21) for one in parcels]
    for index in range(max(one.get_item_count() for one in held)):
        for one in held:
            if index < one.get_item_count():
                one.produce_item(index)


def kept(shelf: Shelf, site: str, arrays: dict[str, Any]) -> Answer:
    """Keep what a site sent as the coordinator does."""
    return shelf.keep(Answer(site, SiteAnswer("", "", 10, {}, 0.0, "", ""), arrays))


def peers(folder: Path, sites: list[str], name: str) -> Callable[[], None]:
    """Do a round between peers, then what the next one sends out."""
    parameters = {"density": 1.0, "bits": WHOLE} if name == "dfedavgm" else {}
    plan = make_plan(strategy=Strategy(name, parameters), min_sites=2)
    start = Stored.write(folder / "start", model(0))
    one = relaying.Relaying(Relay(plan, start.mapped()), Mailroom(folder / "mail"))
    shelf = Shelf.empty(folder / "arrived", "job", Carriage(plan, 1, start))
    everyone = frozenset(sites)

    def letter(site: str, version: int, to: tuple[str, ...] = ()) -> dict[str, Any]:
        arrays = model(sites.index(site))
        message = arrays if name == "dfedavgm" or to else {}
        return Letter(aggregation.fingerprint(arrays), version, {}, to, message).arrays()

    def train(asked: frozenset[str], parcel: Any) -> list[Answer]:
        fetched([whole(parcel(site), 1) for site in sorted(asked)])
        return [kept(shelf, site, letter(site, 1 + len(done))) for site in sorted(asked)]

    def send(asked: frozenset[str], arrays: Any) -> list[Answer]:
        [to] = [key.removeprefix("to:") for key in arrays if key.startswith("to:")]
        return [kept(shelf.beside("sent"), site, letter(site, 1, (to,))) for site in sorted(asked)]

    done: list[int] = []
    (folder / "arrived" / "job" / "sent").mkdir()

    def work() -> None:
        asks = relaying.Asks(train, send, frozenset)
        record, _ = one.round(Checkpoint(0, model(0), {}, start.sha256), everyone, asks)
        done.append(1)
        one.round(Checkpoint(1, record.arrays(), {}, ""), everyone, asks)

    return work


def swarm(folder: Path, sites: list[str]) -> Callable[[], None]:
    """Hand a round over to the drawn site."""
    plan = make_plan(strategy=Strategy("swarm", {}), min_sites=2)
    start = Stored.write(folder / "start", model(0))
    shelf = Shelf.empty(folder / "arrived", "job", Carriage(plan, 1, start))

    def ask(site: str, arrays: Any) -> None:
        data, _, _ = leading.order(plan, 1, frozenset({site}), arrays)
        fetched([data])

    def work() -> None:
        answers = [kept(shelf, site, model(i)) for i, site in enumerate(sites)]
        updates = [aggregation.Update(a.site, a.arrays, a.said.samples) for a in answers]
        loose = dataclasses.replace(plan, max_update_norm=1e5)
        with pytest.raises(AggregationError, match="no site gave a model"):
            leading.lead(loose, Checkpoint(0, model(0), {}, start.sha256), updates, ask)

    return work


def main(name: str, count: int) -> float:
    """Return the largest memory in units of one model."""
    sites = [f"site-{i}" for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        work = swarm(Path(folder), sites) if name == "swarm" else peers(Path(folder), sites, name)
        tracemalloc.start()
        work()
        _, most = tracemalloc.get_traced_memory()
    return most / (ARRAYS * NUMBERS * 4)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
