"""The sites of ``cloister simulate``: options and folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.progress import Progress

from appliance.cli import WRONG_USE
from appliance.federation.joincode import SITE_NAME

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.console import Console

    from trainer.datasets import Dataset
    from trainer.task import TaskSpec

_ABSENCE: Final = re.compile(r"(.+)=([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True)
class Place:
    """Where a site's files lie; without ``labels`` in ``labels.csv`` of the folder."""

    folder: Path
    labels: Path | None


@dataclass(frozen=True)
class Sites:
    """What was read: sites that train, sites that are measured alone, and a report per site."""

    task: TaskSpec
    datasets: dict[str, Dataset]
    unseen: dict[str, Dataset]
    reports: dict[str, Any]


def places(option: str, texts: list[str], taken: frozenset[str] = frozenset()) -> dict[str, Place]:
    """Read NAME=DIR[,LABELS] of each text; ends the program with 2 for anything else.

    ``taken`` names sites of another option: a name is used once.
    """
    found: dict[str, Place] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        place = _place(rest)
        if place is None or not SITE_NAME.fullmatch(name) or name in found or name in taken:
            typer.echo(
                f"{option}: expected NAME=DIR[,LABELS], each name once, DIR a folder, LABELS a CSV file",
                err=True,
            )
            raise typer.Exit(WRONG_USE)
        found[name] = place
    return found


def absences(texts: list[str], sites: Collection[str], rounds: int) -> dict[int, list[str]]:
    """Read NAME=FIRST-LAST of each text, by round; ends the program with 2 for anything else."""
    found: dict[int, list[str]] = {}
    for text in texts:
        match = _ABSENCE.fullmatch(text)
        name, first, last = match.group(1, 2, 3) if match else ("", "0", None)
        if name not in sites or not 1 <= int(first) <= int(last or first) <= rounds:
            typer.echo("--away: expected NAME=ROUND or NAME=FIRST-LAST, a site and rounds of its", err=True)
            raise typer.Exit(WRONG_USE)
        for number in range(int(first), int(last or first) + 1):
            found.setdefault(number, []).append(name)
    return found


def read(
    path: Path, training: dict[str, Place], unseen: dict[str, Place], cache: Path, console: Console
) -> Sites:
    """Read the task and every site; raises TrainerError."""
    from trainer.simulation import held_out  # noqa: PLC0415 - torch, only when the command runs
    from trainer.task import read_task  # noqa: PLC0415

    task = read_task(path)
    reports: dict[str, Any] = {}
    datasets = {name: _read(task, name, place, cache, console, reports) for name, place in training.items()}
    others = {
        name: held_out(_read(task, name, place, cache, console, reports)) for name, place in unseen.items()
    }
    for name, dataset in others.items():
        reports[name]["counts"] = dataset.counts
    return Sites(task, datasets, others, reports)


def _place(text: str) -> Place | None:
    """Split at the last comma, unless the whole is a folder, whose name may have one."""
    if not text:
        return None
    if Path(text).is_dir():
        return Place(Path(text), None)
    folder, separator, labels = text.rpartition(",")
    if not separator or not folder or not Path(folder).is_dir() or not Path(labels).is_file():
        return None
    return Place(Path(folder), Path(labels))


def _read(
    task: TaskSpec, name: str, place: Place, cache: Path, console: Console, reports: dict[str, Any]
) -> Dataset:
    from trainer import datasets  # noqa: PLC0415
    from trainer.folders import read_site_folder  # noqa: PLC0415

    if task.finding is None:
        return _read_masks(task, name, place, cache, console, reports)
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task(f"reading {name}")

        def step(stage: str, done: int, total: int) -> None:
            del stage
            bars.update(bar, completed=done, total=total)

        content = read_site_folder(place.folder, task.label, place.labels)
        found = datasets.build(content.cases, task, cache, step)
    reports[name] = {
        "counts": found.counts,
        "skipped": {**content.skipped, **found.skipped},
        "label_problems": [vars(problem) for problem in content.problems],
    }
    for problem in content.problems[:20]:
        console.print(f"{name}: labels, line {problem.line}: {problem.message}", highlight=False)
    return found


def _read_masks(
    task: TaskSpec, name: str, place: Place, cache: Path, console: Console, reports: dict[str, Any]
) -> Dataset:
    from trainer.masked_cases import build_masked  # noqa: PLC0415
    from trainer.segmentation.folders import read_mask_folder  # noqa: PLC0415

    if place.labels is not None:
        typer.echo(f"{name}: expected no LABELS: a task of this kind takes DICOM SEG masks", err=True)
        raise typer.Exit(WRONG_USE)
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task(f"reading {name}")

        def step(stage: str, done: int, total: int) -> None:
            del stage
            bars.update(bar, completed=done, total=total)

        content = read_mask_folder(place.folder, task)
        found = build_masked(content.stored, task, cache, step)
    reports[name] = {"counts": found.counts, "skipped": {**content.skipped, **found.skipped}}
    return found
