"""What an attacker gets out of models and updates: who was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.inversion import directions
from trainer.networks import with_weights
from trainer.optimisation import probabilities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.datasets import Samples
    from trainer.task import TaskSpec

Array = NDArray[Any]
_LEAST_SPREAD: Final = 0.05


def confidence(task: TaskSpec, weights: Mapping[str, Array], samples: Samples) -> NDArray[np.float64]:
    """Return the logit of the true label's probability for each case."""
    p = probabilities(with_weights(task, weights), samples.x)
    p = np.clip(np.where(samples.y > 0, p, 1 - p), 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def likelihood_ratios(values: NDArray[np.float64], member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Score each case at each model by what the other models say, higher where it looks like a member.

    Parameters
    ----------
    values : ndarray, shape (models, cases)
        Of :func:`confidence`.
    member : ndarray of bool, shape (models, cases)
        Whether the case was trained on.

    References
    ----------
    Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022: the offline variant's
    Gaussian likelihood ratio with one spread for all cases, since there are few shadow models.
    """
    scores = np.zeros(values.shape)
    for target in range(len(values)):
        others = np.arange(len(values)) != target
        sides = [_side(values[others], chosen[others]) for chosen in (member, ~member)]
        (centre_in, spread_in, seen_in), (centre_out, spread_out, seen_out) = sides
        near_in = ((values[target] - centre_in) / spread_in) ** 2
        near_out = ((values[target] - centre_out) / spread_out) ** 2
        scores[target] = np.where(seen_in & seen_out, (near_out - near_in) / 2, 0.0)
    return scores


def _side(
    values: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float, NDArray[np.bool_]]:
    """Return each case's mean over the chosen models, one spread for all, and which cases have any."""
    count = chosen.sum(axis=0)
    centre = np.where(chosen, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    rest = np.where(chosen, (values - centre) ** 2, 0.0).sum() / max(int((count - 1).clip(0).sum()), 1)
    return centre, max(float(np.sqrt(rest)), _LEAST_SPREAD), count > 0


def area(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> float:
    """Return the chance that a member scores above a non-member: 0.5 tells nothing, 1 tells all."""
    ranks = np.empty(scores.size)
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, scores.size + 1)
    inside = int(member.sum())
    return float((ranks[member].sum() - inside * (inside + 1) / 2) / (inside * (scores.size - inside)))


def found_at(scores: NDArray[np.float64], member: NDArray[np.bool_], false_alarms: float) -> float:
    """Return the share of members found where that share of non-members is taken for members."""
    threshold = np.quantile(scores[~member], 1 - false_alarms, method="higher")
    return float((scores[member] > threshold).mean())


def gradients(task: TaskSpec, weights: Mapping[str, Array], samples: Samples) -> NDArray[np.float32]:
    """Return the direction of the loss's gradient at each case, shape (cases, parameters), of length 1."""
    signs = np.where(samples.y > 0, -1.0, 1.0).astype(np.float32)
    return np.asarray(directions(task, weights, samples.x).numpy() * signs[:, None])


def alignment(
    slopes: NDArray[np.float32], step: Mapping[str, Array], names: Sequence[str]
) -> NDArray[np.float64]:
    """Return the cosine between a step and the way down each case's loss: a member's was part of it.

    Parameters
    ----------
    slopes : ndarray
        Of :func:`gradients`, at the model that the step starts from.
    step : Mapping
        A site's update, or the sum of all.
    names : sequence of str
        The parameters, in the network's order.

    References
    ----------
    Li, Li and Ribeiro, Effective Passive Membership Inference Attacks in Federated Learning against
    Overparameterized Models, ICLR 2023: cosine of a case's gradient and a site's update.
    """
    flat = np.concatenate([np.asarray(step[name], dtype=np.float32).ravel() for name in names])
    return np.asarray(-(slopes @ flat) / max(float(np.linalg.norm(flat)), 1e-12), dtype=np.float64)
