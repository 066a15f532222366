"""What coordinator and site say to each other beside tensors: JSON texts, checked by who reads them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from appliance.federation import dialect
from appliance.federation.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.federation.exchange import Finished, Refused

ORDER_KEY: Final = "cloister_order"
ANSWER_KEY: Final = "cloister_answer"
BASE_KEY: Final = "cloister_base"  # hash of the model that a packed step leads on from
ENCRYPTION_KEY: Final = "cloister_encryption_key"  # of sites, sealed for them: the coordinator hands it on
MAX_TEXT: Final = 1024 * 1024
MAX_METRICS: Final = 64
MAX_METRIC_VALUES: Final = 1000
MAX_METRIC_DEPTH: Final = 4
MAX_CHARACTERS: Final = 500
MAX_COUNT: Final = 2**31 - 1  # what an integer column holds
MAX_SECONDS: Final = 366 * 24 * 3600.0
MAX_NUMBER: Final = 1e300


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
    ledger: Mapping[str, Any] = field(default_factory=dict)  # blocks of the consortium's ledger
    speaks: dialect.Dialect = field(default_factory=dialect.own)


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
    statement: Mapping[str, Any] = field(default_factory=dict)
    countersignature: Mapping[str, Any] = field(default_factory=dict)
    speaks: dialect.Dialect = field(default_factory=dialect.own)


def write_order(order: Order) -> str:
    """Return an order as text."""
    return json.dumps(asdict(order))


def read_order(text: object) -> Order:
    """Read an order; raises MessageError."""
    content = _object(text)
    number, wait_s = content.get("number", 0), content.get("wait_s", 0.0)
    texts = [content.get("plan_sha256"), content.get("model_sha256", "")]
    plan = content.get("plan", {})
    ledger = content.get("ledger", {})
    if (
        not all(_is_text(item) for item in texts)
        or not isinstance(plan, dict)
        or not isinstance(ledger, dict)
    ):
        raise MessageError("order: expected hashes, a plan and an offer of blocks")
    if not _is_count(number) or not _is_number(wait_s, 0.0, MAX_SECONDS):
        raise MessageError("order: expected a round and a time")
    return Order(str(texts[0]), number, str(texts[1]), float(wait_s), plan, ledger, _speaks(content))


def refusal_of(refused: Refused | None) -> dict[str, Any]:
    """Return the answer of a site that sends nothing."""
    if refused is None:
        return {"code": "", "speaks": dialect.own().to_json()}
    return {"code": refused.code, "message": refused.message, "speaks": dialect.own().to_json()}


def answer_of(finished: Finished) -> dict[str, Any]:
    """Return what goes with an update."""
    return {
        "code": "",
        "samples": finished.samples,
        "metrics": dict(finished.metrics),
        "train_seconds": finished.train_seconds,
        "receipt_sha256": finished.receipt_sha256,
        "signature": finished.signature,
        "statement": dict(finished.statement),
        "speaks": dialect.own().to_json(),
    }


def read_answer(text: object) -> SiteAnswer:
    """Read a site's answer; raises MessageError.

    Nothing in it is trusted beyond its form, but that form fits the book: counts fit a column, texts can be
    encoded, numbers are finite.
    """
    content = _object(text)
    samples, seconds = content.get("samples", 0), content.get("train_seconds", 0.0)
    metrics = content.get("metrics", {})
    if not _is_count(samples) or not _is_number(seconds, 0.0, MAX_SECONDS):
        raise MessageError("answer: expected a count of samples and a time")
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
        raise MessageError("answer: expected few metrics")
    _check_metrics(metrics)
    texts = {name: content.get(name, "") for name in ("code", "message", "receipt_sha256", "signature")}
    if not all(_is_text(item) for item in texts.values()):
        raise MessageError("answer: expected short texts")
    signed = {name: content.get(name, {}) for name in ("statement", "countersignature")}
    if not all(isinstance(item, dict) for item in signed.values()):
        raise MessageError("answer: expected objects that were signed")
    speaks = _speaks(content)
    return SiteAnswer(
        samples=samples, metrics=metrics, train_seconds=float(seconds), speaks=speaks, **texts, **signed
    )


def _speaks(content: Mapping[str, Any]) -> dialect.Dialect:
    try:
        return dialect.read(content.get("speaks", {}))
    except dialect.DialectError as error:
        raise MessageError(str(error)) from error


def _check_metrics(metrics: dict[str, Any]) -> None:
    """Raise MessageError unless the metrics are a shallow object of few, finite, storable values."""
    left, level = MAX_METRIC_VALUES, [metrics]
    for _ in range(MAX_METRIC_DEPTH):
        left -= sum(len(group) for group in level)
        if left < 0:
            raise MessageError("answer: expected few metrics")
        deeper = []
        for group in level:
            for name, value in group.items():
                if isinstance(value, dict):
                    deeper.append(value)
                elif not _is_plain(value):
                    raise MessageError("answer: expected metrics that are finite numbers or short texts")
                if not _is_text(name):
                    raise MessageError("answer: expected metrics with short names")
        level = deeper
    if level:
        raise MessageError("answer: expected metrics of few levels")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool) or _is_text(value) or _is_number(value, -MAX_NUMBER)


def _is_text(value: object) -> bool:
    """Whether a value is a short text that a database and a log can take: no lone surrogate, no NUL."""
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        return False
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_number(value: object, low: float, high: float = MAX_NUMBER) -> bool:
    """Compare before converting: JSON has integers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _object(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise MessageError("expected a text of at most 1 MiB")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MessageError("expected JSON") from error
    if not isinstance(value, dict):
        raise MessageError("expected a JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(name)
