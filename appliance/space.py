"""What gives way when space runs out: first training, then new associations, at last instances (0xA700)."""

from __future__ import annotations

import shutil
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from dicom_node.ports import Decision

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.settings import DICOMSettings
    from dicom_node.ports import Caller, CallerPolicy

LITTLE_SPACE: Final = "little_space"


class Grade(IntEnum):
    """How much gives way."""

    ENOUGH = 0
    NO_TRAINING = 1
    NO_ASSOCIATIONS = 2
    NO_INSTANCES = 3

    @property
    def words(self) -> str:
        """What gives way, for people."""
        return _WORDS[self]


_WORDS: Final = {
    Grade.ENOUGH: "nothing gives way",
    Grade.NO_TRAINING: "training is paused",
    Grade.NO_ASSOCIATIONS: "training is paused, and those that only send are asked to associate later",
    Grade.NO_INSTANCES: "instances are refused (0xA700), and training is paused",
}


def grade_of(dicom: DICOMSettings, folder: Path) -> Grade:
    """Say what gives way now, by the free space of a folder's file system."""
    free_mib = shutil.disk_usage(folder).free >> 20
    bounds = (
        (dicom.min_free_mib, Grade.NO_INSTANCES),
        (dicom.refuse_below_mib or 2 * dicom.min_free_mib, Grade.NO_ASSOCIATIONS),
        (dicom.pause_training_below_mib or 4 * dicom.min_free_mib, Grade.NO_TRAINING),
    )
    return next((grade for bound, grade in bounds if free_mib < bound), Grade.ENOUGH)


class WithSpace:
    """A policy that asks those who would send to come again while there is little space.

    Parameters
    ----------
    callers : CallerPolicy
        Decides everything else.
    dicom : DICOMSettings
    folder : Path
        Of the inbox.
    """

    def __init__(self, callers: CallerPolicy, dicom: DICOMSettings, folder: Path) -> None:
        self._callers = callers
        self._dicom = dicom
        self._folder = folder

    def decide(self, caller: Caller) -> Decision:
        """Allow whom the other policy allows, but for those that send where there is too little space."""
        decision = self._callers.decide(caller)
        full = decision.allowed and decision.may_store and not decision.may_query
        if full and grade_of(self._dicom, self._folder) >= Grade.NO_ASSOCIATIONS:
            return Decision(allowed=False, reason=LITTLE_SPACE, transient=True)
        return decision
