"""The simulation's two components of the engine: who aggregates, and who trains at each site.

Both are thin: rounds are :func:`trainer.local_round.local_round`, aggregation is :mod:`trainer.strategies`,
as in :mod:`trainer.simulation` and in a real federation. Global models and updates go through the engine;
what a site trains on lies in a folder that the job names: no real site may load these classes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.model_controller import ModelController

from trainer import attendance, strategies, weights_io
from trainer.compression import draw_of
from trainer.compression.steps import WayBack
from trainer.engine.exchange import MODEL, RECORDS, TASK_NAME, Order, load_dataset, load_own, save_own
from trainer.errors import StrategyError

if TYPE_CHECKING:
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.signal import Signal


class SimulationController(ModelController):  # type: ignore[misc]
    """Runs the rounds of an order and leaves model and records in its folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)

    def run(self) -> None:
        """Run all rounds; an exception ends the job, and the missing result is seen by who started it."""
        order = Order.read(self._folder)
        strategy = strategies.get(order.strategy)
        weights = weights_io.load(self._folder / MODEL)
        state: dict[str, Any] = {}
        way_back = WayBack.of(order.compression, order.seed)
        records = []
        for number in range(1, order.rounds + 1):
            started = time.perf_counter()
            model = FLModel(params_type=ParamsType.FULL, params=dict(weights), current_round=number)
            gone, there = attendance.split(order.away, number, order.sites)
            chosen = strategy.participants(number, there, order.seed, state)
            results = self.send_model_and_wait(TASK_NAME, model, targets=list(chosen))
            if len(results) != len(chosen):
                raise StrategyError(f"round {number}: {len(results)} updates; expected {len(chosen)}")
            contributions, sites = [], {}
            for result in results:
                site = str(result.meta["client_name"])
                record = json.loads(result.meta["record"])
                delta = _unpacked(order, site, number, result.params, weights)
                contributions.append(strategies.Contribution(site, delta, int(record["samples"])))
                sites[site] = record
            after, state = strategy.aggregate(weights, contributions, state, order.parameters)
            for site, score in strategies.anomaly_scores(contributions).items():
                sites[site]["anomaly_score"] = score
            for site, share in strategies.site_weights(state).items():
                sites[site]["weight"] = share
            for site, came in way_back.bytes_to(sites).items():
                sites[site]["model_bytes"] = came
            weights = way_back.moved(number, weights, after, sites)
            seconds = time.perf_counter() - started
            records.append({"number": number, "seconds": seconds, "sites": sites, "away": gone})
        weights_io.save(self._folder / MODEL, weights)
        (self._folder / RECORDS).write_text(json.dumps(records), encoding="utf-8")


class SimulationExecutor(Executor):  # type: ignore[misc]
    """Trains one site's local rounds."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Do one local round."""
        from trainer.local_round import use_threads  # noqa: PLC0415 - the server loads no torch
        from trainer.simulation import site_round  # noqa: PLC0415

        if task_name != TASK_NAME or abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED)
        use_threads(1)
        order, site = Order.read(self._folder), fl_ctx.get_identity_name()
        model = FLModelUtils.from_shareable(shareable)
        update, record = site_round(
            order.task,
            {name: np.asarray(array) for name, array in model.params.items()},
            load_dataset(self._folder, site),
            site=site,
            number=int(model.current_round),
            strategy=order.strategy,
            parameters=order.parameters,
            own=load_own(self._folder, site),
            seed=order.seed,
            privacy=order.privacy,
            compression=order.compression,
        )
        save_own(self._folder, site, update.own)
        answer = FLModel(
            params_type=ParamsType.DIFF,
            params=update.leaving,
            meta={"record": json.dumps(record.to_json()), "client_name": site},
        )
        return FLModelUtils.to_shareable(answer)


def _unpacked(
    order: Order, site: str, number: int, received: dict[str, Any], weights: weights_io.Weights
) -> weights_io.Weights:
    """Return a site's update from what travelled."""
    if order.compression is None:
        return {name: _fitted(received[name], weights[name]) for name in weights}
    template = order.compression.template(weights)
    arrays = {name: _fitted(received[name], template[name]) for name in template}
    return order.compression.unpack(arrays, weights, draw_of(order.seed, site, number))


def _fitted(received: Any, expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Undo what the engine does to 0-d arrays: they come back as scalars of another width."""
    array = np.asarray(received)
    return array.reshape(expected.shape).astype(expected.dtype) if expected.ndim == 0 else array
