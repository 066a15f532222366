"""One model on the pictures of one study: which of them it takes, its answers, the results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from inference.errors import NotApplicableError, PreprocessingError, ResultError
from inference.preprocessing import prepare
from inference.results.context import DEVICE, MANUFACTURER, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from inference.card import ModelCard
    from inference.results.context import Marked, ResultContext, SegmentContext
    from inference.session import ModelSession

_OTHER_FORM: Final = ("volume.", "pixel.frames")
_READ_ERRORS: Final = (InvalidDicomError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError)


@dataclass(frozen=True)
class Outcome:
    """What a model said of a study.

    ``answers`` hold their sources without pixel data; ``unreadable`` is (path, reason code) of the others.
    """

    answers: tuple[Answer, ...]
    paths: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class SegmentOutcome:
    """What a model marked in a study; ``unreadable`` is (path, reason code), once of a series or picture."""

    marked: tuple[Marked, ...]
    unreadable: tuple[tuple[Path, str], ...]


def read_instance(path: Path, *, with_pixels: bool) -> Dataset:
    """Read one instance.

    Raises
    ------
    PreprocessingError
        ``instance.read`` if it is none.
    """
    try:
        ds = dcmread(path, stop_before_pixels=not with_pixels)
    except _READ_ERRORS as error:
        raise PreprocessingError(
            "instance.read", f"not a readable DICOM file ({type(error).__name__})"
        ) from error
    if not ds.get("SOPInstanceUID") or not ds.get("StudyInstanceUID"):
        raise PreprocessingError("instance.read", "no SOP Instance UID or Study Instance UID")
    return ds


def nothing_read(unreadable: Sequence[tuple[Path, str]]) -> ResultError:
    """Return the error of a model that could read nothing of a study, of one or more instances or series.

    Where all are whole, and only not of the form that the model reads, it is a NotApplicableError.
    """
    reasons = Counter(code for _, code in unreadable)
    told = ", ".join(f"{number} {code}" for code, number in sorted(reasons.items()))
    first = unreadable[0][1]
    if all(code.startswith(_OTHER_FORM) for code in reasons):
        return NotApplicableError(first, f"no series or picture of the form that the model reads: {told}")
    return ResultError(first, f"no picture or series of the study could be read: {told}")


def is_own_result(ds: Dataset) -> bool:
    """Whether a node of this product made the instance; such instances never trigger inference."""
    return (
        str(ds.get("Manufacturer", "")) == MANUFACTURER and str(ds.get("ManufacturerModelName", "")) == DEVICE
    )


def fits(ds: Dataset, card: ModelCard) -> bool:
    """Whether the model is made for this instance."""
    if is_own_result(ds) or str(ds.get("Modality", "")) not in card.input.modalities:
        return False
    return not card.input.sop_classes or str(ds.get("SOPClassUID", "")) in card.input.sop_classes


def answer_study(session: ModelSession, paths: Sequence[Path], alive: Callable[[], None]) -> Outcome:
    """Run a model on pictures, one after the other, so that memory stays that of one.

    Parameters
    ----------
    session : ModelSession
        The model.
    paths : sequence of Path
        Instances that fit.
    alive : callable
        Called before each picture.

    Raises
    ------
    SessionError
        If the model fails.
    """
    answers: list[Answer] = []
    answered: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    for path in paths:
        alive()
        try:
            ds = read_instance(path, with_pixels=True)
            image = prepare(ds, session.card.input.preprocessing)
        except PreprocessingError as error:
            unreadable.append((path, error.code))
            continue
        probabilities = session.run(image[np.newaxis])[0]
        del ds.PixelData
        answers.append(Answer(ds, tuple(float(value) for value in probabilities)))
        answered.append(path)
    return Outcome(tuple(answers), tuple(answered), tuple(unreadable))


def segment_study(session: ModelSession, paths: Sequence[Path], alive: Callable[[], None]) -> SegmentOutcome:
    """Run a model that marks segments on each series of a study, or on each picture; one series at a time.

    Parameters
    ----------
    session : ModelSession
        A model whose card has segments.
    paths : sequence of Path
        Instances that fit.
    alive : callable
        Called before each series or picture, and between the steps of a series.

    Raises
    ------
    SessionError
        If the model fails.
    """
    from inference import marking  # noqa: PLC0415 - loads what volumes need

    unreadable: list[tuple[Path, str]] = []
    if session.card.input.volume is None:
        pictures = []
        for path in paths:
            alive()
            try:
                ds = read_instance(path, with_pixels=True)
                pictures.append(marking.mark_picture(session, path, ds))
            except PreprocessingError as error:
                unreadable.append((path, error.code))
        joined = marking.joined(pictures, measured=session.card.threshold is not None)
        return SegmentOutcome(tuple(joined), tuple(unreadable))
    marked = []
    for group in _by_series(paths, unreadable):
        alive()
        try:
            instances = {path: read_instance(path, with_pixels=True) for path in group}
            marked.append(marking.mark_series(session, instances, alive))
        except PreprocessingError as error:
            unreadable.append((group[0], error.code))
    return SegmentOutcome(tuple(marked), tuple(unreadable))


def _by_series(paths: Sequence[Path], unreadable: list[tuple[Path, str]]) -> list[list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        try:
            series = str(read_instance(path, with_pixels=False).get("SeriesInstanceUID", ""))
        except PreprocessingError as error:
            unreadable.append((path, error.code))
            continue
        found.setdefault(series, []).append(path)
    return [found[series] for series in sorted(found)]


def build_segment_results(context: SegmentContext) -> list[tuple[str, Dataset]]:
    """Make a segmentation (``seg``) of each series, the report (``sr``), and the capture (``sc``).

    Of single pictures, whose pixels have no volume, there is a report where they have a score.

    Raises
    ------
    InferenceError
        If a result cannot be made.
    """
    from inference.results.marked_picture import most_marked  # noqa: PLC0415  highdicom is slow to import
    from inference.results.measured import build_measurements  # noqa: PLC0415
    from inference.results.sc import build_marked_capture  # noqa: PLC0415
    from inference.results.seg import build_segmentation  # noqa: PLC0415

    segmentations = [build_segmentation(context, marked) for marked in context.marked]
    results = [("seg", ds) for ds in segmentations]
    if context.card.input.volume is not None or context.card.threshold is not None:
        results.append(("sr", build_measurements(context, segmentations)))
    marked, index = most_marked(context)
    shown = read_instance(marked.paths[index], with_pixels=True)
    return [*results, ("sc", build_marked_capture(context, shown))]


def build_results(context: ResultContext, paths: Sequence[Path]) -> dict[str, Dataset]:
    """Make the Structured Report (``sr``) and the Secondary Capture (``sc``).

    Parameters
    ----------
    context : ResultContext
        Its sources need no pixel data.
    paths : sequence of Path
        Where the sources lie, in the order of the answers.

    Raises
    ------
    InferenceError
        If a result cannot be made.
    """
    from inference.results.sc import build_capture  # noqa: PLC0415  highdicom is slow to import
    from inference.results.sr import build_report  # noqa: PLC0415

    index = context.answers.index(context.leading)
    shown = replace(context.leading, source=read_instance(paths[index], with_pixels=True))
    answers = (*context.answers[:index], shown, *context.answers[index + 1 :])
    return {"sr": build_report(context), "sc": build_capture(replace(context, answers=answers))}
