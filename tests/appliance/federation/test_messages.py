from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.federation import enginehost, messages
from appliance.federation.controller import read_result
from appliance.federation.messages import MessageError, Order

SAID = {
    "code": "",
    "samples": 10,
    "metrics": {"auc": 0.5},
    "train_seconds": 1.0,
    "receipt_sha256": "a",
    "signature": "b",
}


def result(
    said: object, arrays: dict[str, Any] | None = None, kind: ParamsType = ParamsType.DIFF
) -> Shareable:
    reply = make_reply(ReturnCode.OK)
    if arrays is not None:
        reply = FLModelUtils.to_shareable(FLModel(params_type=kind, params=arrays))
    reply[messages.ANSWER_KEY] = said if isinstance(said, str) else json.dumps(said)
    return reply


def test_an_order_is_read_back() -> None:
    order = Order("a" * 64, 3, "b" * 64, 12.5, {"x": 1})

    assert messages.read_order(messages.write_order(order)) == order


def test_an_update_is_read() -> None:
    answer = read_result("north", result(SAID, {"weight": np.ones((2, 2), np.float32)}))

    assert (answer.said.code, answer.said.samples, answer.bytes_received) == ("", 10, 16)


@pytest.mark.parametrize(
    "broken",
    [
        make_reply(ReturnCode.EXECUTION_EXCEPTION),
        make_reply(ReturnCode.OK),
        result("not json"),
        result("[]"),
        result({**SAID, "samples": "10"}),
        result({**SAID, "samples": True}),
        result({**SAID, "metrics": [1]}),
        result({**SAID, "metrics": {str(i): i for i in range(100)}}),
        result({**SAID, "train_seconds": "x"}),
        result({**SAID, "code": "x" * 501}),
        result('{"code": "", "train_seconds": NaN}'),
        result(SAID, {"weight": np.ones(2, np.float32)}, ParamsType.FULL),
        "no shareable at all",
    ],
)
def test_a_broken_result_is_a_refusal_not_an_exception(broken: Any) -> None:
    answer = read_result("north", broken)

    assert answer.said.code in {"engine_error", "unreadable"}
    assert answer.arrays == {}


@given(st.text() | st.none() | st.integers() | st.binary())
def test_no_other_text_is_taken_for_an_answer_or_an_order(text: Any) -> None:
    with pytest.raises(MessageError):
        messages.read_answer(text)
    with pytest.raises(MessageError):
        messages.read_order(text)


def test_a_site_serves_no_shell_no_files_no_logs_and_no_shutdown() -> None:
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors  # noqa: PLC0415

    before = list(ClientRequestProcessors.request_processors)
    try:
        enginehost.restrict_requests()
        names = {type(one).__name__ for one in ClientRequestProcessors.request_processors}
    finally:
        ClientRequestProcessors.request_processors[:] = before

    assert names == enginehost.ALLOWED_REQUESTS
    assert not [name for name in names if "Shell" in name or "Log" in name or "Shutdown" in name]
