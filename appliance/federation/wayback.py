"""How the global model goes back to the sites of a job: whole, or as a packed step from the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.federation import messages
from appliance.federation.book import Checkpoint
from trainer.compression import steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nvflare.apis.shareable import Shareable

    from trainer.federation.aggregation import Aggregate
    from trainer.federation.plan import Plan
    from trainer.weights_io import Weights


class WayBack:
    """The way of one job; its first round sends the model whole, since only the book outlives a job."""

    def __init__(self, plan: Plan) -> None:
        packing = plan.compression
        self._packing = packing if packing is not None and packing.both_ways else None
        self._seed = plan.seed
        self._arrays: Weights = {}
        self._from = self._to = ""  # hashes of the models that the step is between
        self._have: frozenset[str] = frozenset()

    def plain(self, standing: Checkpoint) -> Checkpoint:
        """Return a checkpoint with what the strategy itself remembers."""
        return standing if self._packing is None else replace(standing, state=steps.without(standing.state))

    def taken(self, number: int, standing: Checkpoint, result: Aggregate) -> Checkpoint:
        """Return what a round comes to: the aggregate, or where a packed step in its direction leads to."""
        if self._packing is None:
            return Checkpoint(number, result.weights, result.state, "")
        draw = steps.drawn(self._seed, number)
        step = steps.take(self._packing, draw, standing.weights, result.weights, standing.state)
        self._arrays = step.arrays
        return Checkpoint(number, step.weights, {**result.state, **step.left}, "")

    def reached(self, standing: Checkpoint, finished: Checkpoint, sites: Iterable[str]) -> None:
        """Take note of who was given the model before the step that was taken last."""
        self._from, self._to = standing.model_sha256, finished.model_sha256
        self._have = frozenset(sites)

    def data(self, standing: Checkpoint, number: int, sites: Iterable[str]) -> dict[str, Shareable]:
        """Return what each site is sent of the global model; sites of one kind share it."""
        full = whole(standing.weights, number)
        if self._packing is None or self._to != standing.model_sha256:
            return dict.fromkeys(sites, full)
        step = _shareable(self._arrays, ParamsType.DIFF, number)
        step[messages.BASE_KEY] = self._from
        return {site: step if site in self._have else full for site in sites}


def whole(arrays: Mapping[str, Any], number: int) -> Shareable:
    """Return the arrays of a model as they travel."""
    return _shareable(arrays, ParamsType.FULL, number)


def _shareable(arrays: Mapping[str, Any], kind: ParamsType, number: int) -> Shareable:
    model = FLModel(params_type=kind, params=dict(arrays), current_round=number)
    return FLModelUtils.to_shareable(model)
