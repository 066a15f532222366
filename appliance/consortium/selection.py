"""Which de-identified studies are to be shared, and what lies in the research zone of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.consortium.errors import ConsortiumError
from appliance.consortium.manifest import SharedFile, SharedLabel
from appliance.db.engine import reading
from appliance.db.research import Label, ResearchInstance, Subject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone


class SelectionError(ConsortiumError):
    """Studies that cannot be shared; the message says why, without naming one."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for: studies by mapped UID, subjects by pseudonym, all that bear a label."""

    studies: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    label: str = ""


@dataclass(frozen=True, eq=False)
class Selection:
    """What there is of it. ``paths`` are by SHA-256; ``opted_out`` subjects were left out."""

    studies: int
    subjects: int
    files: tuple[SharedFile, ...]
    labels: tuple[SharedLabel, ...]
    paths: Mapping[str, Path]
    opted_out: int


def choose(zone: ResearchZone, wanted: Wanted) -> Selection:
    """Find the instances of the studies that are wanted, and the labels of their subjects.

    Raises
    ------
    SelectionError
        If a study or subject that was named is not here or opted out, or nothing is left.
    """
    with reading(zone.engine) as session:
        found = list(_rows(session, wanted))
        out = {subject.id for subject, _ in found if subject.opted_out}
        kept = [(subject, one) for subject, one in found if subject.id not in out]
        _check_named(wanted, kept)
        pseudonyms = {subject.pseudonym for subject, _ in kept}
        studies = {one.study_instance_uid for _, one in kept}
        labels = tuple(_labels(session, pseudonyms, studies))
    paths = {one.sha256: zone.root / one.path for _, one in kept}
    sizes = {one.sha256: one.size_bytes for _, one in kept}
    return Selection(
        studies=len(studies),
        subjects=len(pseudonyms),
        files=tuple(SharedFile(digest, sizes[digest]) for digest in sorted(sizes)),
        labels=labels,
        paths=paths,
        opted_out=len(out),
    )


def _rows(session: Session, wanted: Wanted) -> Iterator[tuple[Subject, ResearchInstance]]:
    labelled = {
        (row.pseudonym, row.study_instance_uid)
        for row in session.scalars(select(Label).where(Label.name == wanted.label))
    }
    statement = select(Subject, ResearchInstance).join(
        ResearchInstance, ResearchInstance.subject_id == Subject.id
    )
    for subject, one in session.execute(statement.order_by(ResearchInstance.sop_instance_uid)):
        study, person = one.study_instance_uid, subject.pseudonym
        named = study in wanted.studies or person in wanted.subjects
        if named or not labelled.isdisjoint({(person, study), (person, "")}):
            yield subject, one


def _check_named(wanted: Wanted, kept: Collection[tuple[Subject, ResearchInstance]]) -> None:
    missing = len(wanted.studies - {one.study_instance_uid for _, one in kept})
    missing += len(wanted.subjects - {subject.pseudonym for subject, _ in kept})
    if missing:
        raise SelectionError(f"{missing} of the studies or subjects are not here, or opted out")
    if not kept:
        raise SelectionError("no study is left to share; expected at least one")


def _labels(session: Session, pseudonyms: set[str], studies: set[str]) -> Iterator[SharedLabel]:
    """Return the labels on which all sources agree."""
    values: dict[tuple[str, str, str], set[int]] = {}
    for row in session.scalars(select(Label)):
        if row.pseudonym in pseudonyms and row.study_instance_uid in {"", *studies}:
            values.setdefault((row.pseudonym, row.study_instance_uid, row.name), set()).add(row.value)
    for key, said in sorted(values.items()):
        if len(said) == 1:
            yield SharedLabel(*key, *said)


def still_here(session: Session) -> set[str]:
    """Return the hashes of all files that are here, but for those of subjects who opted out."""
    rows = session.execute(
        select(ResearchInstance.sha256, Subject.opted_out).join(
            Subject, ResearchInstance.subject_id == Subject.id
        )
    )
    return {digest for digest, opted_out in rows if not opted_out}
