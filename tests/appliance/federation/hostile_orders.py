"""A hostile coordinator's workflow for the real engine: it asks sites for what nobody approved.

It runs in the coordinator's server process, which a hostile coordinator owns: no site loads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.impl.controller import Controller
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.chronicle import Chronicle, Entry
from appliance.consortium.offers import write_offer
from appliance.db.engine import writing
from appliance.federation import messages, policy, provision
from appliance.federation.book import open_book
from trainer.federation.plan import Plan
from trainer.weights_io import load, to_bytes

if TYPE_CHECKING:
    from nvflare.apis.client import Client
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.apis.signal import Signal

DEADLINE_S = 60.0
SCENE = "CLOISTER_TEST_SCENE"


class HostileWorkflow(Controller):  # type: ignore[misc]
    """Sends one order after the other and writes down what each site answered."""

    def __init__(self) -> None:
        super().__init__(task_check_period=0.05)
        self._lock = threading.Lock()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Read what the test prepared: an approved plan and its initial model."""
        del fl_ctx
        self._folder = Path(os.environ[SCENE])
        self._plan = Plan.loads((self._folder / "plan.json").read_text())
        self._model = load(self._folder / "model.safetensors")
        self._chronicle = self._write_down()

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Ask for everything that a site must refuse, then write the answers."""
        del abort_signal
        plan, model = self._plan, self._model
        other = {name: array + 1 for name, array in model.items()}
        more = Plan.from_json({**plan.to_json(), "total_rounds": plan.total_rounds + 50})
        loose = {**plan.to_json(), "max_update_norm": 1e9}
        wants = {**plan.to_json(), "want": ["activations"]}
        orders: list[tuple[str, str, messages.Order, dict[str, Any]]] = [
            ("approved", "train", self._order(plan, 1, model), model),
            ("replayed", "train", self._order(plan, 1, model), model),
            ("other model", "train", self._order(plan, 1, other), other),
            ("more rounds", "train", self._order(plan, plan.total_rounds + 1, model), model),
            ("other plan", "admit", messages.Order(plan.sha256, plan=more.to_json()), {}),
            ("unbounded", "admit", messages.Order(plan.sha256, plan=loose), {}),
            ("activations", "admit", messages.Order(plan.sha256, plan=wants), {}),
            ("unknown plan", "train", self._order(more, 1, model), model),
            ("unknown task", "activations", self._order(plan, 2, model), model),
            (
                "unknown tensors",
                "train",
                self._strange(plan),
                {**model, "activations": np.ones(3, np.float32)},
            ),
        ]
        found = {name: self._ask(task, order, arrays, fl_ctx) for name, task, order, arrays in orders}
        (self._folder / "answers.json").write_text(json.dumps(found))

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop it."""

    def _write_down(self) -> Chronicle:
        """Put what will be asked for into the consortium's ledger: its own part of that it may make up."""
        book = open_book(provision.load(Path(os.environ[policy.ROOT_VARIABLE])))
        assert book.ledger is not None
        chain = Chronicle(book.engine, book.ledger.signing)
        plan, first, strange = (
            self._plan.sha256,
            self._order(self._plan, 1, self._model),
            self._strange(self._plan),
        )
        chain.open_run(plan, 0, first.model_sha256)
        with writing(book.engine) as session:
            entry = Entry(blocks.ROUND, plan, 1, first.model_sha256, strange.model_sha256)
            chronicle.append(session, chain.key, entry)
        return chain

    def _order(self, plan: Plan, number: int, model: dict[str, Any]) -> messages.Order:
        return messages.Order(plan.sha256, number, hashlib.sha256(to_bytes(model)).hexdigest())

    def _strange(self, plan: Plan) -> messages.Order:
        return self._order(plan, 2, {**self._model, "activations": np.ones(3, np.float32)})

    def _ask(
        self, name: str, order: messages.Order, arrays: dict[str, Any], fl_ctx: FLContext
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            del fl_ctx
            result = client_task.result
            with self._lock:
                found[client_task.client.name] = {
                    "answer": json.loads(result.get(messages.ANSWER_KEY) or "{}"),
                    "code": str(result.get_return_code()),
                    "tensors": "DXO" in result,
                }

        data = FLModelUtils.to_shareable(FLModel(params_type=ParamsType.FULL, params=arrays))
        targets = [client.name for client in self._engine.get_clients()]
        order = replace(order, ledger=write_offer(self._chronicle.offer(targets)))
        data[messages.ORDER_KEY] = json.dumps(asdict(order))
        task = Task(name=name, data=data, result_received_cb=receive)
        self.broadcast(task=task, fl_ctx=fl_ctx, targets=targets, min_responses=0)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with self._lock:
                if len(found) == len(targets):
                    break
            time.sleep(0.05)
        self.cancel_task(task, TaskCompletionStatus.OK, fl_ctx)
        with self._lock:
            return dict(found)
