"""From series, few of them with masks of anomalies, to healthy cases to train on and others to measure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pydicom import dcmread

from trainer.datasets import UNREADABLE, Dataset, Samples, split, split_salt
from trainer.ports import silent
from trainer.segmentation.building import divided, prepare_all
from trainer.segmentation.cases import gather
from trainer.segmentation.masks import MODALITY, MaskError, names_any
from trainer.segmentation.spec import SegmentationSpec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trainer.anomaly.spec import AnomalySpec
    from trainer.ports import Progress
    from trainer.segmentation.cases import Stored
    from trainer.task import TaskSpec


def build(
    stored: Iterable[Stored], task: TaskSpec, cache: Path | None, progress: Progress = silent
) -> Dataset:
    """Prepare every picture of who has no mask of an anomaly, and the masked pictures of who has.

    People without such masks are taken to be healthy, and are split. Those who have one are held out with
    what their masks are of: no picture of theirs is trained on, be their masks unreadable.

    Parameters
    ----------
    stored : iterable of Stored
        Pictures and masks, in any order. Masks without a segment of the task are as if they were not there.
    task : TaskSpec
        An anomaly task.
    cache : Path, optional
        Folder of prepared arrays by content hash; it may be deleted at any time.
    progress : Progress
        Called with stages ``masks`` and ``prepare``.

    Returns
    -------
    Dataset
        As of :func:`trainer.segmentation.building.build`, but that ``y`` is 1 in any anomaly, and that
        ``mask.missing`` counts the pictures without a mask of people who have one elsewhere.
    """
    if task.anomaly is None:
        raise ValueError("expected an anomaly task")
    masked = _as_masked(task, task.anomaly)
    about = [one for one in stored if one.modality != MODALITY or _is_about(one, task.anomaly)]
    sick = frozenset(one.pseudonym for one in about if one.modality == MODALITY)
    gathered = gather(about, masked, progress)
    healthy = [one for one in gathered.unmasked if one.pseudonym not in sick]
    skipped = Counter(gathered.skipped)
    skipped["mask.missing"] -= sum(len(one.images) for one in healthy)
    prepared = prepare_all((*gathered.series, *healthy), masked, cache, skipped, progress)
    people = {series.pseudonym for series, _ in prepared}
    train, held_out = split(people - sick, task.validation_fraction, split_salt(task))
    made = divided(masked, prepared, (train, held_out | sick), +skipped)
    return replace(made, train=_any_class(made.train), validation=_any_class(made.validation))


def _as_masked(task: TaskSpec, spec: AnomalySpec) -> TaskSpec:
    """Return the segmentation that reads these pictures and masks."""
    return replace(task, anomaly=None, segmentation=SegmentationSpec(2, spec.segments))


def _is_about(one: Stored, spec: AnomalySpec) -> bool:
    """Whether a mask may show an anomaly; what cannot be read may."""
    try:
        return names_any(dcmread(one.path, stop_before_pixels=True), spec.segments)
    except (MaskError, *UNREADABLE):
        return True


def _any_class(samples: Samples) -> Samples:
    return replace(samples, y=(samples.y > 0).astype(samples.y.dtype))
