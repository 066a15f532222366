"""What a site answers to the coordinator, read as the hostile input it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.consortium import block as blocks
from appliance.consortium.errors import BlockFormError
from appliance.consortium.offers import BROKEN
from appliance.federation import dialect, messages, progress
from appliance.federation.book import Counted
from trainer.errors import TrainerError
from trainer.federation import aggregation
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

CLAIMED: Final = "samples_claimed"  # beside a contribution's metrics, where fewer samples counted
# A gate's word, which only people or a new plan change; any other failure of a site may have passed by the
# next job.
FINAL_CODES: Final = frozenset(
    {*(code.value for code in Refusal if code != Refusal.PAUSED), "unreadable_plan", BROKEN}
)

MAY_COME_BACK: Final = frozenset({Refusal.PAUSED.value, dialect.OTHER_VERSION})
"""What people at a site or here change before long: a run that lacks only such sites waits for them."""
_TELLING: Final = frozenset({dialect.OTHER_VERSION, "unreadable_plan"})  # codes whose message is needed

# What reading foreign objects may raise: ours, the engine's (of no common base) and Python's own.
UNREADABLE: Final = (
    messages.MessageError,
    TrainerError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Answer:
    """One site's answer to a broadcast."""

    site: str
    said: messages.SiteAnswer
    arrays: Mapping[str, Any] = field(default_factory=dict)
    bytes_received: int = 0
    update_sha256: str = ""  # of the file that holds what arrived
    key: str = ""  # the sites' key of encrypted updates, as this one offers it, sealed


def read_result(site: str, result: object, *, whole: bool = False) -> Answer:
    """Translate a site's result; what cannot be read is a refusal with the reason, never an exception.

    ``whole`` says that a model is expected, and not a difference.

    The engine would take an exception here for the end of the whole broadcast and drop all later answers.
    """
    try:
        return _read(site, result, ParamsType.FULL if whole else ParamsType.DIFF)
    except UNREADABLE as error:
        return unreadable(site, error)


def unreadable(site: str, error: Exception) -> Answer:
    """Return the refusal that stands for an answer which cannot be read."""
    return Answer(site, _refusal("unreadable", type(error).__name__))


def unfit(answer: Answer, error: TrainerError) -> Answer:
    """Return the refusal that stands for an update which no site packs."""
    return replace(answer, said=replace(answer.said, code="unfit", message=str(error)[:300]), arrays={})


def why(answer: Answer) -> str:
    """Return a refusal in words for the run's record."""
    said = answer.said
    return f"{answer.site}: {said.code}" + (f" ({said.message})" if said.code in _TELLING else "")


def silent(site: str) -> Answer:
    """Return the refusal that stands for a site whose turn it was and which said nothing."""
    return Answer(site, _refusal("no_answer", "the site was passed over"))


def _read(site: str, result: object, expected: str) -> Answer:
    if not isinstance(result, Shareable):
        return Answer(site, _refusal("engine_error", ReturnCode.BAD_TASK_DATA))
    code = result.get_return_code(ReturnCode.OK)
    if code != ReturnCode.OK:
        return Answer(site, _refusal("engine_error", _printable(code)))
    said = messages.read_answer(result.get(messages.ANSWER_KEY))
    wrong = dialect.mismatch(said.speaks, "the coordinator", f"site {site}")
    if wrong and said.code != dialect.OTHER_VERSION:  # a site that says so itself speaks to its own people
        return Answer(site, _refusal(dialect.OTHER_VERSION, wrong))
    if said.code or "DXO" not in result:
        key = result.get(messages.ENCRYPTION_KEY, "")
        return Answer(site, said, key=key if isinstance(key, str) else "")
    model = FLModelUtils.from_shareable(result)
    if model.params_type != expected or not isinstance(model.params, dict):
        return Answer(site, _refusal("unreadable", f"expected weights of type {expected}"))
    arrays = aggregation.plain_arrays(model.params)
    return Answer(site, said, arrays, sum(int(array.nbytes) for array in arrays.values()))


def _printable(code: object) -> str:
    return "".join(character for character in str(code)[:60] if character.isprintable())


def _refusal(code: str, message: str) -> messages.SiteAnswer:
    return messages.SiteAnswer(code, message, 0, {}, 0.0, "", "")


def to_update(answer: Answer) -> aggregation.Update:
    """Return an answer's update, with the norm that its site signed, where it signed one."""
    try:
        longest = blocks.read_statement(answer.said.statement.get("statement")).longest
    except BlockFormError:  # where a consortium keeps a ledger, none such gets here
        longest = None
    most = math.inf if longest is None else longest
    return aggregation.Update(answer.site, answer.arrays, answer.said.samples, most)


def to_counted(answer: Answer, judgement: aggregation.Judgement | None) -> Counted:
    """Return an answer as it goes into the book; ``judgement`` is that of its update, if it has one."""
    said = answer.said
    reason = f"{said.code}: {said.message}" if said.code else None
    base = Counted(answer.site, said.samples, "", answer.bytes_received, said.metrics, reason, said.statement)
    if judgement is None:
        return base
    metrics = dict(said.metrics)
    for name in (progress.ANOMALY, progress.WEIGHT, progress.LED):
        metrics.pop(name, None)  # the site's own word on it does not count
    if judgement.claimed > judgement.samples:
        metrics[CLAIMED] = judgement.claimed
    if judgement.anomaly is not None:
        metrics[progress.ANOMALY] = round(judgement.anomaly, 2)
    if judgement.weight is not None:
        metrics[progress.WEIGHT] = round(judgement.weight, 4)
    return replace(
        base,
        samples=judgement.samples,
        update_sha256=answer.update_sha256 or judgement.update_sha256,
        metrics=metrics,
        reason=judgement.reason,
    )
