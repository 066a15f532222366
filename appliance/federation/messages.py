"""What coordinator and site say to each other beside tensors: JSON texts, checked by who reads them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from appliance.federation.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.federation.exchange import Finished, Refused

ORDER_KEY: Final = "cloister_order"
ANSWER_KEY: Final = "cloister_answer"
MAX_TEXT: Final = 1024 * 1024
MAX_METRICS: Final = 64


class MessageError(FederationError):
    """A message is not one."""


@dataclass(frozen=True)
class Order:
    """What the coordinator asks of a site. ``plan`` comes with the first task of a job alone."""

    plan_sha256: str
    number: int = 0
    model_sha256: str = ""
    wait_s: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteAnswer:
    """What a site said; ``code`` is empty when it took part."""

    code: str
    message: str
    samples: int
    metrics: Mapping[str, Any]
    train_seconds: float
    receipt_sha256: str
    signature: str


def write_order(order: Order) -> str:
    """Return an order as text."""
    return json.dumps(asdict(order))


def read_order(text: object) -> Order:
    """Read an order; raises MessageError."""
    content = _object(text)
    number, wait_s = content.get("number", 0), content.get("wait_s", 0.0)
    texts = [content.get("plan_sha256"), content.get("model_sha256", "")]
    plan = content.get("plan", {})
    if not all(isinstance(item, str) for item in texts) or not isinstance(plan, dict):
        raise MessageError("order: expected hashes and a plan")
    if not isinstance(number, int) or not isinstance(wait_s, int | float):
        raise MessageError("order: expected a round and a time")
    return Order(str(texts[0]), number, str(texts[1]), float(wait_s), plan)


def refusal_of(refused: Refused | None) -> dict[str, Any]:
    """Return the answer of a site that sends nothing."""
    if refused is None:
        return {"code": ""}
    return {"code": refused.code, "message": refused.message}


def answer_of(finished: Finished) -> dict[str, Any]:
    """Return what goes with an update."""
    return {
        "code": "",
        "samples": finished.samples,
        "metrics": dict(finished.metrics),
        "train_seconds": finished.train_seconds,
        "receipt_sha256": finished.receipt_sha256,
        "signature": finished.signature,
    }


def read_answer(text: object) -> SiteAnswer:
    """Read a site's answer; raises MessageError. Nothing in it is trusted beyond its form."""
    content = _object(text)
    samples, seconds = content.get("samples", 0), content.get("train_seconds", 0.0)
    metrics = content.get("metrics", {})
    if not isinstance(samples, int) or isinstance(samples, bool) or not isinstance(metrics, dict):
        raise MessageError("answer: expected samples and metrics")
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or len(metrics) > MAX_METRICS:
        raise MessageError("answer: expected a finite time and few metrics")
    texts = {name: content.get(name, "") for name in ("code", "message", "receipt_sha256", "signature")}
    if not all(isinstance(item, str) and len(item) <= 500 for item in texts.values()):
        raise MessageError("answer: expected short texts")
    return SiteAnswer(samples=samples, metrics=metrics, train_seconds=float(seconds), **texts)


def _object(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise MessageError("expected a text of at most 1 MiB")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise MessageError("expected JSON") from error
    if not isinstance(value, dict):
        raise MessageError("expected a JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(name)
