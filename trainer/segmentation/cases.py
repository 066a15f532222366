"""Which series have which masks: stored instances in, cases out, and what was left out by reason."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import dcmread

from trainer.datasets import UNREADABLE
from trainer.ports import silent
from trainer.segmentation.masks import MODALITY, MaskError, references

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from trainer.ports import Progress
    from trainer.segmentation.masks import References
    from trainer.task import TaskSpec

_Key = tuple[str, str]  # whose, and which series


@dataclass(frozen=True)
class Stored:
    """An instance in a folder or in the research zone; ``sha256`` is of the file."""

    pseudonym: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    modality: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class MaskedSeries:
    """A series and its masks. Of a two-dimensional task ``chosen`` are the instances that are cases.

    Without a mask nothing in it is marked.
    """

    pseudonym: str
    images: tuple[Stored, ...]
    masks: tuple[Stored, ...]
    chosen: frozenset[str]

    @property
    def sha256(self) -> str:
        """Hash of what it is made of, whatever the files are called."""
        parts = [sorted(one.sha256 for one in part) for part in (self.images, self.masks)]
        return hashlib.sha256("\n".join([*parts[0], "", *parts[1]]).encode()).hexdigest()


@dataclass(frozen=True)
class Gathered:
    """Series with masks, cases left out by reason, and the series that are left out for want of a mask."""

    series: tuple[MaskedSeries, ...]
    skipped: Mapping[str, int]
    unmasked: tuple[MaskedSeries, ...] = ()


def gather(stored: Iterable[Stored], task: TaskSpec, progress: Progress = silent) -> Gathered:
    """Find the masks of each series of the task's modalities.

    A mask belongs to the series whose instances it names, or else to the one whose UID it names. Reasons, of
    cases: ``mask.missing`` (a series without), ``mask.reference`` (its mask names instances that are not
    there); of objects: ``duplicate``, ``contradiction`` (one UID, two contents or owners),
    ``mask.unreadable``, ``mask.stray`` (of no series here, of more than one, or of somebody else's).
    """
    distinct, skipped = _distinct(stored)
    by_series: dict[_Key, list[Stored]] = defaultdict(list)
    for one in distinct:
        if one.modality in task.modalities:
            by_series[one.pseudonym, one.series_instance_uid].append(one)
    found, incomplete, lost = _attributed(
        [m for m in distinct if m.modality == MODALITY], by_series, progress
    )
    skipped.update(lost)
    series, unmasked = [], []
    for key, images in sorted(by_series.items()):
        everything = frozenset(one.sop_instance_uid for one in images)
        if key in incomplete or key not in found:
            reason = "mask.reference" if key in incomplete else "mask.missing"
            skipped[reason] += weight(task, len(images))
            if key not in incomplete:
                unmasked.append(MaskedSeries(key[0], tuple(images), (), everything))
            continue
        named = frozenset(uid for _, about in found[key] for uid in about.sop_instance_uids)
        masks = tuple(mask for mask, _ in found[key])
        series.append(MaskedSeries(key[0], tuple(images), masks, named or everything))
    return Gathered(tuple(series), dict(sorted((+skipped).items())), tuple(unmasked))


def weight(task: TaskSpec, images: int) -> int:
    """Return how many cases a series of so many instances is."""
    return 1 if len(task.size) == 3 else images


def _distinct(stored: Iterable[Stored]) -> tuple[list[Stored], Counter[str]]:
    """Return each instance once, in an order that does not depend on how they came."""
    groups: dict[str, list[Stored]] = defaultdict(list)
    for one in sorted(stored, key=lambda item: (item.sop_instance_uid, item.sha256, item.pseudonym)):
        groups[one.sop_instance_uid].append(one)
    kept: list[Stored] = []
    skipped: Counter[str] = Counter()
    for group in groups.values():
        if len({(one.sha256, one.pseudonym) for one in group}) > 1:
            skipped["contradiction"] += len(group)
            continue
        kept.append(group[0])
        skipped["duplicate"] += len(group) - 1
    return kept, skipped


def _attributed(
    masks: Sequence[Stored], by_series: Mapping[_Key, Sequence[Stored]], progress: Progress
) -> tuple[dict[_Key, list[tuple[Stored, References]]], set[_Key], Counter[str]]:
    """Return the masks of each series, the series that lack instances, and the masks that have no series."""
    home = {one.sop_instance_uid: key for key, images in by_series.items() for one in images}
    found: dict[_Key, list[tuple[Stored, References]]] = defaultdict(list)
    incomplete: set[_Key] = set()
    lost: Counter[str] = Counter()
    for done, mask in enumerate(masks, start=1):
        progress("masks", done, len(masks))
        if not mask.path.is_file():
            lost["missing"] += 1
            continue
        try:
            about = references(dcmread(mask.path, stop_before_pixels=True))
        except (MaskError, *UNREADABLE):
            lost["mask.unreadable"] += 1
            continue
        keys = {home[uid] for uid in about.sop_instance_uids if uid in home}
        keys = keys or {(mask.pseudonym, uid) for uid in about.series_instance_uids} & by_series.keys()
        key = next(iter(keys)) if len(keys) == 1 else None
        if key is None or key[0] != mask.pseudonym:
            lost["mask.stray"] += 1
            continue
        if about.sop_instance_uids - home.keys():
            incomplete.add(key)
        found[key].append((mask, about))
    return found, incomplete, lost
