"""The scorer finds what it is there to find, and the real data scores what is promised."""

from __future__ import annotations

import io
import warnings
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from tests.anonymizer.material import STUDY_UID, UNSEEN, ct, encode, item, release
from tests.anonymizer.scores import PATIENT_IDENTITY, Action, Scores
from tests.anonymizer.scoring import Links, files, score, score_file, score_links

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydicom import Dataset


@pytest.mark.real_data
@pytest.mark.slow
def test_the_public_data_scores_all_of_identity_and_999_of_1000_of_everything(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = score(files(), tmp_path)
    assert [failure for failure in scores.failures if failure[0] in PATIENT_IDENTITY] == []
    assert scores.percent(Action) >= 99.9, scores.table()
    assert all(scores.checks[action] >= 50 for action in Action), scores.table()
    assert scores.released >= 420
    for action in (Action.FILE_PRESENT, Action.META_EQUALS_DATASET, Action.PIXELS_RETAINED):
        assert scores.percent([action]) == 100.0


def _originals() -> list[Dataset]:
    """Return two instances of one study, the second with a reference to the first."""
    first, second = ct(), ct()
    second.SOPInstanceUID = f"{first.SOPInstanceUID}.2"
    second.ReferencedImageSequence = [
        item(ReferencedSOPClassUID=first.SOPClassUID, ReferencedSOPInstanceUID=first.SOPInstanceUID)
    ]
    return [dcmread(io.BytesIO(encode(ds))) for ds in (first, second)]


def _scored(change: Callable[[Dataset], None] | None) -> Scores:
    """De-identify two instances, spoil the second one, and score both."""
    scores, links = Scores(), Links()
    for number, original in enumerate(_originals()):
        out = release(original, UNSEEN).ds
        if number and change is not None:
            change(out)
        score_file(deepcopy(original), out, str(number), scores, links)
    score_links(scores, links)
    return scores


def test_what_the_engine_makes_passes() -> None:
    assert _scored(None).failures == []


def _leave_name(ds: Dataset) -> None:
    ds.ReferringPhysicianName = "Überweiser^Hans"


def _hide_name_elsewhere(ds: Dataset) -> None:
    ds.SeriesDescription = "of mustermann and müstermann"


def _leave_date(ds: Dataset) -> None:
    ds.StudyDate = "20240229"


def _shift_otherwise(ds: Dataset) -> None:
    ds.StudyDate = "20231105"


def _leave_uid(ds: Dataset) -> None:
    ds.StudyInstanceUID = STUDY_UID


def _map_otherwise(ds: Dataset) -> None:
    ds.FrameOfReferenceUID = "2.25.1"


def _other_patient(ds: Dataset) -> None:
    ds.PatientID = "OTHER"


def _lose(ds: Dataset) -> None:
    del ds.KVP


def _change(ds: Dataset) -> None:
    ds.SliceThickness = "1.6"


def _empty(ds: Dataset) -> None:
    ds.DeidentificationMethod = ""


def _change_pixels(ds: Dataset) -> None:
    ds.PixelData = b"\1" + ds.PixelData[1:]


def _other_meta(ds: Dataset) -> None:
    ds.file_meta.MediaStorageSOPInstanceUID = UID("2.25.2")


def _private(ds: Dataset) -> None:
    ds.private_block(0x0029, "OURS", create=True).add_new(0x01, "LO", "x")


def _other_reference(ds: Dataset) -> None:
    ds.ReferencedImageSequence = [item(ReferencedSOPInstanceUID="2.25.4")]


@pytest.mark.parametrize(
    ("spoil", "action"),
    [
        (_leave_name, Action.TEXT_REMOVED), (_hide_name_elsewhere, Action.TEXT_REMOVED),
        (_private, Action.TEXT_REMOVED), (_leave_date, Action.DATE_SHIFTED),
        (_shift_otherwise, Action.DATE_SHIFTED), (_leave_uid, Action.UID_CHANGED),
        (_map_otherwise, Action.UID_CONSISTENT), (_other_patient, Action.PATIENT_ID_CONSISTENT),
        (_lose, Action.TAG_RETAINED), (_change, Action.TEXT_RETAINED), (_empty, Action.TEXT_NOT_NULL),
        (_change_pixels, Action.PIXELS_RETAINED), (_other_meta, Action.META_EQUALS_DATASET),
        (_other_reference, Action.REFERENCE_RESOLVES),
    ],
)  # fmt: skip
def test_what_is_spoiled_fails_under_its_action(spoil: Callable[[Dataset], None], action: Action) -> None:
    assert action in {failed for failed, _ in _scored(spoil).failures}
