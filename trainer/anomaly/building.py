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
from trainer.segmentation.masks import MODALITY, MaskError, names_any, references
from trainer.segmentation.spec import SegmentationSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from trainer.anomaly.spec import AnomalySpec
    from trainer.ports import Progress
    from trainer.segmentation.cases import MaskedSeries, Stored
    from trainer.task import TaskSpec


def build(
    stored: Iterable[Stored], task: TaskSpec, cache: Path | None, progress: Progress = silent
) -> Dataset:
    """Prepare every picture of who has no mask of an anomaly, and the masked pictures of who has.

    People without such masks are taken to be healthy, and are split. Those who have one are held out with
    what their masks are of: no picture of theirs is trained on, even if their masks are unreadable, and none
    that somebody else's mask names.

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
        ``mask.missing`` counts pictures without a usable mask of people who have one, and pictures that
        somebody else's mask names.
    """
    if task.anomaly is None:
        raise ValueError("expected an anomaly task")
    masked = _as_masked(task, task.anomaly)
    everything = tuple(stored)
    pictures = [one for one in everything if one.modality != MODALITY]
    about = _about([one for one in everything if one.modality == MODALITY], task.anomaly, progress)
    sick = frozenset(one.pseudonym for one in about)
    pointed_at = frozenset().union(*about.values())
    gathered = gather([*pictures, *about], masked, progress)
    healthy = [one for one in gathered.unmasked if one.pseudonym not in sick and not _uids(one) & pointed_at]
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


def _about(masks: Sequence[Stored], spec: AnomalySpec, progress: Progress) -> dict[Stored, frozenset[str]]:
    """Return the masks that may show an anomaly, and the UIDs that each names; what is unreadable may."""
    found: dict[Stored, frozenset[str]] = {}
    for done, mask in enumerate(masks, start=1):
        try:
            ds = dcmread(mask.path, stop_before_pixels=True)
            if names_any(ds, spec.segments):
                about = references(ds)
                found[mask] = about.series_instance_uids | about.sop_instance_uids
        except (MaskError, *UNREADABLE):
            found[mask] = frozenset()
        progress("masks", done, len(masks))
    return found


def _uids(series: MaskedSeries) -> frozenset[str]:
    instances = frozenset(one.sop_instance_uid for one in series.images)
    return instances | {one.series_instance_uid for one in series.images}


def _any_class(samples: Samples) -> Samples:
    return replace(samples, y=(samples.y > 0).astype(samples.y.dtype))
