"""One model on the pictures of one study: which of them it takes, its answers, the results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from inference.errors import PreprocessingError
from inference.preprocessing import prepare
from inference.results.context import DEVICE, MANUFACTURER, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from inference.card import ModelCard
    from inference.results.context import ResultContext
    from inference.session import ModelSession

_READ_ERRORS: Final = (InvalidDicomError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError)


@dataclass(frozen=True)
class Outcome:
    """What a model said of a study.

    ``answers`` hold their sources without pixel data; ``unreadable`` is (path, reason code) of the others.
    """

    answers: tuple[Answer, ...]
    paths: tuple[Path, ...]
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
