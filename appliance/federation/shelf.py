"""Where the updates of the round under way lie at the coordinator: on disk, an array at a time in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from appliance.federation.answers import Answer, unreadable
from trainer.errors import WeightsError
from trainer.federation import aggregation
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shelf:
    """A folder of one round's updates; ``reference`` is the round's global model."""

    folder: Path
    reference: Mapping[str, NDArray[Any]]

    @classmethod
    def empty(cls, folder: Path, name: str, reference: Mapping[str, NDArray[Any]]) -> Shelf:
        """Make a shelf of a job's name below a folder; what a job that was killed left there goes."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / name).mkdir(mode=0o700, parents=True)
        return cls(folder / name, reference)

    def keep(self, answer: Answer) -> Answer:
        """Return an answer whose update lies on disk; what no weights file can hold becomes a refusal.

        Raises
        ------
        OSError
            If the disk does not take it: that is no fault of the site.
        """
        if not answer.arrays:
            return answer
        fitted = aggregation.fitted(self.reference, answer.arrays)
        try:
            stored = Stored.write(self.folder / f"{answer.site}.safetensors", fitted)
        except WeightsError as error:
            return unreadable(answer.site, error)
        return replace(answer, arrays=stored)

    def clear(self) -> None:
        """Remove the updates."""
        shutil.rmtree(self.folder, ignore_errors=True)
