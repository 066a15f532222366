"""What gives way when space runs out, in which order."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from appliance import alarms, space_alarm
from appliance.db.engine import reading
from appliance.settings import DICOMSettings
from appliance.space import LITTLE_SPACE, Grade, WithSpace, grade_of
from dicom_node.ports import Caller, Decision

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

CALLER = Caller("CT1", "CLOISTER", "127.0.0.1")


class Known:
    """Allows everybody in one way."""

    def __init__(self, *, may_query: bool = False) -> None:
        self.may_query = may_query

    def decide(self, caller: Caller) -> Decision:
        del caller
        return Decision(allowed=True, may_query=self.may_query)


def settings(folder: Path, grade: Grade) -> DICOMSettings:
    """Return settings under which the space that there is makes this grade."""
    free = shutil.disk_usage(folder).free >> 20
    chosen = {
        Grade.ENOUGH: (1, 2, 3),
        Grade.NO_TRAINING: (1, 2, free * 2),
        Grade.NO_ASSOCIATIONS: (1, free * 2, free * 3),
        Grade.NO_INSTANCES: (free * 2, free * 3, free * 4),
    }[grade]
    return DICOMSettings(
        min_free_mib=chosen[0], refuse_below_mib=chosen[1], pause_training_below_mib=chosen[2]
    )


@pytest.mark.parametrize("grade", Grade)
def test_each_bound_has_its_grade(tmp_path: Path, grade: Grade) -> None:
    assert grade_of(settings(tmp_path, grade), tmp_path) is grade


def test_without_bounds_of_their_own_the_grades_keep_their_order() -> None:
    with pytest.raises(ValidationError, match="ascending order"):
        DICOMSettings(min_free_mib=100, refuse_below_mib=50)
    with pytest.raises(ValidationError, match="ascending order"):
        DICOMSettings(min_free_mib=100, pause_training_below_mib=150)
    assert DICOMSettings(min_free_mib=100, refuse_below_mib=900)


def test_who_only_sends_is_asked_to_come_again(tmp_path: Path) -> None:
    tight = settings(tmp_path, Grade.NO_ASSOCIATIONS)
    refused = WithSpace(Known(), tight, tmp_path).decide(CALLER)
    assert (refused.allowed, refused.transient, refused.reason) == (False, True, LITTLE_SPACE)
    assert WithSpace(Known(may_query=True), tight, tmp_path).decide(CALLER).allowed
    enough = settings(tmp_path, Grade.NO_TRAINING)
    assert WithSpace(Known(), enough, tmp_path).decide(CALLER).allowed


def test_the_alarm_is_raised_once_and_ends(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = [Grade.NO_TRAINING, Grade.NO_ASSOCIATIONS, Grade.ENOUGH, Grade.NO_TRAINING]
    open_after = []
    for grade in grades:
        monkeypatch.setattr(space_alarm, "grade_of", lambda *_, now=grade: now)
        space_alarm.look(clinical_zone)
        with reading(clinical_zone.engine) as session:
            open_after.append([alarm.id for alarm in alarms.still_open(session, space_alarm.SPACE)])
    assert [len(ids) for ids in open_after] == [1, 1, 0, 1]
    assert open_after[0] == open_after[1] != open_after[3]
