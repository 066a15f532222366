"""Datasets of the kinds of task that take pictures and masks instead of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.anomaly import building as healthy
from trainer.ports import silent
from trainer.segmentation import building as segmented

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trainer.datasets import Dataset
    from trainer.ports import Progress
    from trainer.segmentation.cases import Stored
    from trainer.task import TaskSpec


def build_masked(
    stored: Iterable[Stored], task: TaskSpec, cache: Path | None, progress: Progress = silent
) -> Dataset:
    """Prepare the cases of a segmentation or of an anomaly task; see the ``build`` of each."""
    make = segmented.build if task.anomaly is None else healthy.build
    return make(stored, task, cache, progress)
