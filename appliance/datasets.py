"""Datasets of the research zone: which instances with which labels or masks, without who opted out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import durable, masked
from appliance.db.base import new_id
from appliance.db.engine import reading, writing
from appliance.db.research import DatasetVersion, Label, ResearchInstance, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone
    from trainer.datasets import Case, Dataset
    from trainer.ports import Progress
    from trainer.task import TaskSpec

DATASET_BUILT: Final = "dataset.built"

_Labels = dict[tuple[str, str], set[int]]


@dataclass(frozen=True)
class Selection:
    """Cases of a task, and how many instances of its modalities were left out, by reason."""

    cases: tuple[Case, ...]
    skipped: dict[str, int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset in memory; ``cases`` counts them: eligible, used, and skipped by reason.

    A case is an instance, or a series with its masks in a segmentation of volumes.
    """

    dataset: Dataset
    cases: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Built(Prepared):
    """A dataset with the row id of its version."""

    version_id: str


def select_cases(zone: ResearchZone, task: TaskSpec) -> Selection:
    """Join instances and labels by pseudonym; a study's own label counts before its subject's.

    Returns
    -------
    Selection
        Reasons: ``opted_out``, ``unlabelled``, ``label_conflict`` (sources disagree).
    """
    from trainer.datasets import Case  # noqa: PLC0415 - loads pydicom

    with reading(zone.engine) as session:
        labels = _labels(session, task)
        instances = _instances(session, task)
    cases = []
    skipped: dict[str, int] = defaultdict(int)
    for row in instances:
        values = labels.get((row.pseudonym, row.study_instance_uid)) or labels.get((row.pseudonym, ""), set())
        if row.opted_out:
            skipped["opted_out"] += 1
        elif not values:
            skipped["unlabelled"] += 1
        elif len(values) > 1:
            skipped["label_conflict"] += 1
        else:
            cases.append(Case(row.pseudonym, zone.root / row.path, next(iter(values)), row.sha256))
    return Selection(tuple(cases), dict(skipped))


def build(zone: ResearchZone, task: TaskSpec, progress: Progress | None = None) -> Built:
    """Prepare the task's dataset as it stands now, and record its version.

    Prepared arrays stay in ``datasets/cache`` of the zone, so that a second call is cheap.

    Parameters
    ----------
    zone : ResearchZone
        The research zone.
    task : TaskSpec
        Label, modalities, preprocessing, split.
    progress : Progress, optional
        Called with stage ``prepare`` after each case.
    """
    made = prepare(zone, task, progress)
    return Built(made.dataset, made.cases, _record(zone, task, made.dataset, made.cases["skipped"]))


def prepare(zone: ResearchZone, task: TaskSpec, progress: Progress | None = None) -> Prepared:
    """Prepare the task's dataset as :func:`build` does, without recording a version."""
    from trainer import datasets  # noqa: PLC0415 - loads pydicom
    from trainer.ports import silent  # noqa: PLC0415

    cache, beat = zone.root / "datasets" / "cache", progress or silent
    if task.finding is not None:
        selection = select_cases(zone, task)
        left_out, dataset = selection.skipped, datasets.build(selection.cases, task, cache, beat)
    else:
        from trainer.masked_cases import build_masked  # noqa: PLC0415

        stored, left_out = masked.select_masked(zone, task)
        dataset = build_masked(stored, task, cache, beat)
    skipped = {**left_out, **dataset.skipped}
    used = len(dataset.train) + len(dataset.validation)
    cases = {"eligible": used + sum(skipped.values()), "used": used, "skipped": skipped}
    return Prepared(dataset, cases)


def _labels(session: Session, task: TaskSpec) -> _Labels:
    statement = select(Label.pseudonym, Label.study_instance_uid, Label.value).where(Label.name == task.label)
    found: _Labels = defaultdict(set)
    for pseudonym, study, value in session.execute(statement):
        found[(pseudonym, study)].add(value)
    return found


def _instances(session: Session, task: TaskSpec) -> Sequence[Row[str, bool, str, str, str]]:
    statement = (
        select(
            Subject.pseudonym,
            Subject.opted_out,
            ResearchInstance.study_instance_uid,
            ResearchInstance.path,
            ResearchInstance.sha256,
        )
        .join(Subject, Subject.id == ResearchInstance.subject_id)
        .where(ResearchInstance.modality.in_(task.modalities))
        .order_by(ResearchInstance.sha256)
    )
    return session.execute(statement).all()


def _record(zone: ResearchZone, task: TaskSpec, dataset: Dataset, skipped: dict[str, int]) -> str:
    """Write the list first, then the row: what stands in the database can be read."""
    digest = dataset.content_sha256
    with reading(zone.engine) as session:
        known = _known(session, digest)
    if known is not None:
        return known
    relative = f"datasets/{digest}.jsonl"
    path = zone.root / relative
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write_whole(path, dataset.content.encode("ascii"))
    with writing(zone.engine) as session:
        known = _known(session, digest)
        if known is not None:
            return known
        version = DatasetVersion(
            id=new_id(),
            content_sha256=digest,
            label_name=task.label,
            counts=dataset.counts,
            skipped=skipped,
            path=relative,
        )
        session.add(version)
        body = {"content_sha256": digest, "counts": dataset.counts}
        zone.ledger.append(session, kind=DATASET_BUILT, subject_id=version.id, body=body)
        return version.id


def _known(session: Session, digest: str) -> str | None:
    return session.scalar(select(DatasetVersion.id).where(DatasetVersion.content_sha256 == digest))
