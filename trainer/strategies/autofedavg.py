"""Auto-FedAvg: sites' weights in the mean are learnt, by what each one's last update did to all losses."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.strategies.base import (
    WholeModel,
    apply_step,
    checked,
    is_parameter,
    mean_by_share,
    number,
    only,
    weights_state,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

SKETCH: Final = "gradient:sketch"
SIZE: Final = 1024
_LOGIT: Final = "logit:"
_STEP: Final = "step:"
_RATE: Final = "weight_learning_rate"
_TINY: Final = 1e-12


class AutoFedAvg(WholeModel):
    """Auto-FedAvg. Parameter: ``weight_learning_rate`` (2), 0 keeps the weights by cases.

    Weights are a softmax over sites. They start by cases and go down the gradient of the mean over sites of
    the loss at the new global model: with respect to site i's weight that is the inner product of the mean
    gradient with i's last update. The paper's coordinator sends every site all models for it; here a site
    sends a sketch of its gradient, which keeps inner products, and the coordinator one of each update.

    References
    ----------
    Xia et al., Auto-FedAvg: Learnable Federated Averaging for Multi-Institutional Medical Image Segmentation,
    2021; Charikar, Chen and Farach-Colton, Finding Frequent Items in Data Streams, ICALP 2002 (the sketch);
    Kivinen and Warmuth, Exponentiated Gradient versus Gradient Descent, 1997 (the step on the simplex).
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({_RATE}))
        number(parameters, _RATE, 2.0, 0.0, 100.0)

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Add the place of the sketch."""
        return {**initial, SKETCH: np.zeros(SIZE, dtype=np.float32)}

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Learn the weights from the last round's updates, then move by the mean that they give."""
        self.check_parameters(parameters)
        ordered = checked(global_weights, contributions)
        logits = {name: float(array) for name, array in state.items() if name.startswith(_LOGIT)}
        for site, change in _learnt(state, ordered).items():
            logits[_LOGIT + site] -= number(parameters, _RATE, 2.0, 0.0, 100.0) * change
        present = [logits.setdefault(_LOGIT + one.site, float(np.log(one.samples))) for one in ordered]
        shares = _softmax(present)
        step = dict(mean_by_share(global_weights, ordered, shares))
        if SKETCH in step:
            step[SKETCH] = -global_weights[SKETCH].astype(np.float64)
        following: State = {name: np.array(value) for name, value in logits.items()}
        following |= {_STEP + one.site: sketch(one.delta) for one in ordered}
        return apply_step(global_weights, step), following | weights_state(ordered, shares)


def sketch(arrays: Mapping[str, Array]) -> Array:
    """Return a count sketch of all parameters: float32, (1024,), by names and positions alone.

    Inner products of sketches are those of the arrays, up to an error of about 3 % of the product of norms.
    """
    total = np.zeros(SIZE)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if is_parameter(name, array):
            places, signs = _places(name, array.size)
            values = array.reshape(-1).astype(np.float64) * signs
            total += np.bincount(places, weights=values, minlength=SIZE)
    return np.asarray(total, dtype=np.float32)


def _places(name: str, count: int) -> tuple[Array, Array]:
    """Return a bucket and a sign for each position, by splitmix64 of position and name."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(SIZE)).astype(np.int64), 1.0 - 2.0 * (z >> np.uint64(63)).astype(np.float64)


def _learnt(state: Mapping[str, Array], ordered: Sequence[Contribution]) -> dict[str, float]:
    """Return how each weight of the last round changes the loss, in units of usual gradients and updates.

    No gradient counts for more than the median one: a site does not lead by claiming a large one.
    """
    steps = {
        name.removeprefix(_STEP): array.astype(np.float64)
        for name, array in sorted(state.items())
        if name.startswith(_STEP)
    }
    if not steps or SKETCH not in ordered[0].delta:
        return {}
    gradients = [one.delta[SKETCH].astype(np.float64) for one in ordered]
    norms = [float(np.linalg.norm(gradient)) for gradient in gradients]
    usual = float(np.median(norms))
    scale = usual * float(np.mean([np.linalg.norm(step) for step in steps.values()]))
    if scale < _TINY:
        return {}
    shrunk = [g * min(1.0, usual / max(norm, _TINY)) for g, norm in zip(gradients, norms, strict=True)]
    mean = np.mean(shrunk, axis=0)
    slopes = {site: float(mean @ step) / scale for site, step in steps.items()}
    centre = sum(slopes[site] * share for site, share in _last_shares(state, slopes).items())
    return {site: slope - centre for site, slope in slopes.items()}


def _last_shares(state: Mapping[str, Array], sites: Mapping[str, float]) -> dict[str, float]:
    shares = _softmax([float(state[_LOGIT + site]) for site in sites])
    return dict(zip(sites, shares, strict=True))


def _softmax(logits: Sequence[float]) -> list[float]:
    raised = np.exp(np.array(logits) - max(logits))
    return [float(share) for share in raised / raised.sum()]
