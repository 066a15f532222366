"""The engine's executor at a site: a thin shell that translates tasks into questions to the research zone.

It runs in the engine's job process and imports neither torch nor a database nor Celery.
"""

from __future__ import annotations

import json
import os
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.federation import dialect, messages, policy
from appliance.federation.errors import SiteServiceError
from appliance.federation.exchange import AbortedError, Exchange, Finished, Refused
from appliance.federation.unixclient import UnixClient
from trainer.errors import TrainerError
from trainer.federation.peering import MAIL
from trainer.tensor_layout import pieces
from trainer.weights_io import from_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.signal import Signal

_TENSORS: Final = "DXO"  # where the engine keeps a message's arrays


class SiteExecutor(Executor):  # type: ignore[misc]
    """Runs the tasks of :mod:`policy`; takes no argument: a job's are hostile."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Do one task; a refusal is an answer, not an error."""
        exchange = Exchange(
            UnixClient(Path(os.environ[policy.SOCKET_VARIABLE])),
            lambda: bool(abort_signal.triggered),
            partial(_tell_progress, fl_ctx),
        )
        try:
            return self._answer(task_name, exchange, shareable)
        except AbortedError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except (SiteServiceError, TrainerError, messages.MessageError) as error:
            self.log_error(fl_ctx, f"task {task_name}: {error}")
            return _plain(Refused("site_error", str(error)[:300]))

    def _answer(self, task_name: str, exchange: Exchange, shareable: Shareable) -> Shareable:
        order = messages.read_order(shareable.get(messages.ORDER_KEY))
        wrong = dialect.mismatch(order.speaks, "this site", "the coordinator")
        if wrong:  # before anything of it is read: blocks of another version would look like forged ones
            exchange.note_other_version(order.speaks.protocol)
            return _plain(Refused(dialect.OTHER_VERSION, wrong))
        refused, countersignature = exchange.keep(order.ledger)
        if refused is not None or task_name == policy.TASK_LEDGER:
            return _plain(refused, countersignature)
        key = _text(shareable, messages.ENCRYPTION_KEY)
        if task_name == policy.TASK_ADMIT:
            return _admit(exchange, order, key, countersignature)
        refused = exchange.take_key(order.plan_sha256, key) if key else None
        if refused is not None:
            return _plain(refused, countersignature)
        return self._round(task_name, exchange, order, shareable, countersignature)

    def _round(
        self,
        task_name: str,
        exchange: Exchange,
        order: messages.Order,
        shareable: Shareable,
        countersignature: Mapping[str, Any],
    ) -> Shareable:
        model, mail = _model_of(shareable)
        asked = {
            "plan_sha256": order.plan_sha256,
            "kind": task_name,
            "number": order.number,
            "model_sha256": order.model_sha256,
            "mail_sha256": sha256(b"".join(mail)).hexdigest() if mail else "",
        }
        base = _text(shareable, messages.BASE_KEY)
        begun = exchange.begin(asked, model, order.wait_s, mail, base)
        shareable.pop(_TENSORS, None)  # the site has it: this process need not hold two models
        answer = begun if isinstance(begun, Refused) else exchange.finish(begun)
        if isinstance(answer, Refused):
            return _plain(answer, countersignature)
        reply = _carrier(answer, task_name)
        reply[messages.ANSWER_KEY] = json.dumps(
            {**messages.answer_of(answer), "countersignature": dict(countersignature)}
        )
        return reply


def _admit(
    exchange: Exchange, order: messages.Order, key: str, countersignature: Mapping[str, Any]
) -> Shareable:
    """Show the plan; where updates are encrypted, take the sites' key, or offer one while there is none."""
    told_by = str(order.speaks)
    refused, offered = exchange.admit(order.plan, order.plan_sha256, order.wait_s, told_by), ""
    if refused is None and key:
        refused = exchange.take_key(order.plan_sha256, key)
    elif refused is None and "encryption" in order.plan:
        refused, offered = exchange.offer_key(order.plan_sha256)
    reply = _plain(refused, countersignature)
    if offered:
        reply[messages.ENCRYPTION_KEY] = offered
    return reply


def _text(shareable: Shareable, name: str) -> str:
    value = shareable.get(name, "")
    if not isinstance(value, str):
        raise messages.MessageError(f"{name}: expected a text")
    return value


def _model_of(shareable: Shareable) -> tuple[list[memoryview], list[memoryview]]:
    """Return the content of two files: the global model or a step to it, and what comes beside a record."""
    model = FLModelUtils.from_shareable(shareable)
    arrays = {str(name): np.asarray(value) for name, value in model.params.items()}
    mail = {name: array for name, array in arrays.items() if name.startswith(MAIL)}
    rest = {name: array for name, array in arrays.items() if name not in mail}
    return pieces(rest), pieces(mail) if mail else []


def _tell_progress(fl_ctx: FLContext) -> None:
    """Tell the coordinator that the round comes on, and nothing of it; a lost message is no harm."""
    fl_ctx.get_engine().fire_and_forget_aux_request(policy.TOPIC_PROGRESS, Shareable(), fl_ctx, optional=True)


def _plain(refused: Refused | None, countersignature: Mapping[str, Any] | None = None) -> Shareable:
    """Answer without tensors."""
    reply = make_reply(ReturnCode.OK)
    reply[messages.ANSWER_KEY] = json.dumps(
        {**messages.refusal_of(refused), "countersignature": dict(countersignature or {})}
    )
    return reply


def _carrier(answer: Finished, task_name: str) -> Shareable:
    """Pack an update as a difference of weights, a model as weights: filters know what they see."""
    if task_name not in {policy.TASK_TRAIN, policy.TASK_AGGREGATE, policy.TASK_SEND}:
        return make_reply(ReturnCode.OK)
    arrays: dict[str, Any] = from_bytes(answer.content)
    kind = ParamsType.DIFF if task_name == policy.TASK_TRAIN else ParamsType.FULL
    return FLModelUtils.to_shareable(FLModel(params_type=kind, params=arrays))
