"""Measuring a model: AUC of labels, Dice of masks, Dice and precision of anomalies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer import metrics
from trainer.anomaly import measures
from trainer.anomaly.measures import AnomalyMetrics
from trainer.metrics import Metrics
from trainer.optimisation import probabilities, residuals, segmented
from trainer.segmentation import dice
from trainer.segmentation.dice import SegmentationMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from trainer.datasets import Samples
    from trainer.ports import Progress
    from trainer.task import TaskSpec

AnyMetrics = Metrics | SegmentationMetrics | AnomalyMetrics


def measured(network: torch.nn.Module, task: TaskSpec, samples: Samples, progress: Progress) -> AnyMetrics:
    """Return the figures of a network on samples; progress has stage ``evaluate``."""
    if task.anomaly is not None:
        strayed = residuals(network, samples.x, progress)
        inside = measures.pictured(samples.x, task.preprocessing.black)
        return measures.measure(samples.y, strayed, task.anomaly.healthy_share, samples.pseudonyms, inside)
    if task.segmentation is None:
        scores = probabilities(network, samples.x, progress)
        return metrics.measure(samples.y, scores, task.threshold)
    found = segmented(network, samples.x, progress)
    return dice.measure(samples.y, found, task.segmentation.segments, samples.pseudonyms)


def read_metrics(content: Mapping[str, Any]) -> AnyMetrics:
    """Read what ``to_json`` of any kind wrote."""
    if "average_precision" in content:
        return AnomalyMetrics.from_json(content)
    kind = SegmentationMetrics if "dice" in content else Metrics
    return kind.from_json(content)
