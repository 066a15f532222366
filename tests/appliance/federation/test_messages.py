from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.db.base import new_id, now
from appliance.federation import dialect, enginehost, messages
from appliance.federation.answers import read_result, to_counted, to_update
from appliance.federation.book import Book, Checkpoint
from appliance.federation.messages import MessageError, Order
from tests.trainer.federation.plans import make_plan
from trainer.federation import aggregation

SAID = {
    "speaks": dialect.own().to_json(),
    "code": "",
    "samples": 10,
    "metrics": {"auc": 0.5},
    "train_seconds": 1.0,
    "receipt_sha256": "a",
    "signature": "b",
}


def result(
    said: object, arrays: dict[Any, Any] | None = None, kind: ParamsType = ParamsType.DIFF
) -> Shareable:
    reply = make_reply(ReturnCode.OK)
    if arrays is not None:
        reply = FLModelUtils.to_shareable(FLModel(params_type=kind, params=arrays))
    reply[messages.ANSWER_KEY] = said if isinstance(said, str) else json.dumps(said)
    return reply


def with_headers(content: dict[str, Any], headers: object) -> Shareable:
    """Return a result whose headers the site chose; the engine's class starts with none."""
    reply = Shareable(content)
    reply["__headers__"] = headers
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
        result('{"code": "", "train_seconds": 1' + "0" * 400 + "}"),
        result('{"code": "", "train_seconds": 1e999}'),
        result('{"code": "", "samples": 1' + "0" * 5000 + "}"),
        result('{"metrics": ' + "[" * 100_000),
        result('{"metrics": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001),
        result({**SAID, "code": "x", "samples": 2**70}),
        result({**SAID, "samples": -1}),
        result({**SAID, "message": "\ud800"}),
        result({**SAID, "message": "\0"}),
        result({**SAID, "metrics": {"\ud800": 1}}),
        result({**SAID, "metrics": {"auc": "\udfff"}}),
        result({**SAID, "metrics": {"auc": 2**2000}}),
        result({**SAID, "metrics": {"auc": [1]}}),
        result({**SAID, "metrics": {"a": {str(i): i for i in range(2000)}}}),
        result(SAID, {"weight": [[1], [1, 2]]}),
        result(SAID, {"weight": [1.0, 2.0]}),
        result(SAID, {"weight": np.asarray([object()])}),
        result(SAID, {"weight": np.asarray(["x"])}),
        result(SAID, {"weight": np.zeros(2, np.complex64)}),
        result(SAID, {"weight": np.zeros(2, ">f4")}),
        result(SAID, {"weight": np.ma.masked_array([1.0], [True])}),
        result(SAID, {5: np.zeros(2)}),
        result(SAID, {"\ud800": np.zeros(2)}),
        with_headers({}, "none"),
        with_headers({"DXO": 5, messages.ANSWER_KEY: json.dumps(SAID)}, None),
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


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=600)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner), max_leaves=20
)
_SAID = st.fixed_dictionaries(
    {},
    optional={
        "code": st.just("") | _JSON,
        "message": _JSON,
        "samples": st.integers() | _JSON,
        "metrics": st.dictionaries(st.text(st.characters()), _JSON) | _JSON,
        "train_seconds": st.integers() | st.floats() | _JSON,
        "receipt_sha256": _JSON,
        "signature": _JSON,
    },
)
_ARRAYS = (
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_side=3))
    | arrays.from_dtype(np.dtype(np.float32))
    | _JSON
)
_CARRIED: st.SearchStrategy[dict[str, Any]] = (
    st.builds(
        lambda kind, data: {"DXO": {"kind": kind, "data": data, "meta": {}}},
        st.sampled_from(["WEIGHT_DIFF", "WEIGHTS", "METRICS", "?"]),
        st.dictionaries(st.text(st.characters()) | st.integers(), _ARRAYS, max_size=3) | _JSON,
    )
    | st.builds(lambda content: {"DXO": content}, _JSON)
    | st.just({})
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=_SAID, carried=_CARRIED, headers=st.just({"__rc__": ReturnCode.OK}) | _JSON)
def test_whatever_a_site_answers_is_read_and_can_be_stored(
    book: Book, said: dict[str, Any], carried: dict[str, Any], headers: Any
) -> None:
    content = with_headers({**carried, messages.ANSWER_KEY: json.dumps(said)}, headers)

    answer = read_result("north", content)

    run_id = book.add_run(make_plan(run_id=f"run-{new_id()}"), {"weight": np.zeros(1, np.float32)})
    book.set_job(run_id, "job")
    reached = Checkpoint(1, {"weight": np.zeros(1, np.float32)}, {}, "")
    book.finish_round(run_id, "job", reached, [to_counted(answer, None)], now())
    reference = dict(list(answer.arrays.items())[:1])
    fitted = aggregation.fitted(reference, answer.arrays)
    aggregation.judge(reference, aggregation.Update("north", fitted, answer.said.samples), make_plan().bounds)


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


def test_the_norm_that_a_site_signed_goes_with_its_update() -> None:
    signed = dict.fromkeys(("federation", "plan", "model", "update", "receipt", "dataset"), "a" * 64)
    statement = {**signed, "site": "north", "kind": "train", "number": 1, "samples": 10}
    statement |= {"head_size": 1, "head_root": "a" * 64}

    def norm(said: dict[str, Any]) -> float:
        return to_update(read_result("north", result({**SAID, "statement": {"statement": said}}))).norm

    assert norm({**statement, "norm": 1500}) == 1.5
    assert norm(statement) == math.inf  # of a version that stated none
    assert norm({**statement, "norm": "much"}) == math.inf  # the witness refuses it before
