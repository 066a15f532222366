"""Where the updates of the round under way lie at the coordinator: two in memory, all others on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from appliance.federation.answers import Answer, unfit, unreadable
from trainer import strategies
from trainer.compression import draw_of
from trainer.errors import UpdateError, WeightsError
from trainer.federation import aggregation
from trainer.weights_io import Stored, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.federation.plan import Plan


IN_MEMORY: Final = 2  # as many as arrive at the same moment anyway; memory does not grow with the sites


def in_memory(plan: Plan) -> int:
    """Return how many of a round's updates stay in memory: none that is handed on, or large as encrypted."""
    handed_on = plan.own_models or strategies.get(plan.strategy.name).led_by_site
    return 0 if handed_on or plan.encryption is not None else IN_MEMORY


@dataclass(frozen=True)
class Carriage:
    """How updates of one round travel: as differences of ``reference``, packed where the plan says so."""

    plan: Plan
    number: int
    reference: Mapping[str, NDArray[Any]]

    def fitted(self, received: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return what arrived as the site's file has it: see :func:`aggregation.fitted`."""
        if self.plan.encryption is not None:
            return aggregation.fitted({}, received)
        packing = self.plan.compression
        template = self.reference if packing is None else packing.template(self.reference)
        return aggregation.fitted(template, received)

    def unpacked(self, site: str, fitted: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the update, encrypted where it is; raises UpdateError for what no site packs."""
        if self.plan.compression is None or self.plan.encryption is not None:
            return fitted
        draw = draw_of(self.plan.seed, site, self.number)
        return self.plan.compression.unpack(fitted, self.reference, draw)


@dataclass(frozen=True)
class Shelf:
    """A folder of one round's updates.

    Parameters
    ----------
    places : list
        As many updates stay in memory as there are items; each takes one away.
    """

    folder: Path
    carriage: Carriage
    places: list[None] = field(default_factory=list)

    @classmethod
    def empty(cls, folder: Path, name: str, carriage: Carriage, in_memory: int = 0) -> Shelf:
        """Make a shelf of a job's name below a folder; what a job that was killed left there goes."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / name).mkdir(mode=0o700, parents=True)
        return cls(folder / name, carriage, [None] * in_memory)

    def beside(self, name: str) -> Shelf:
        """Return a shelf of the same round for answers of another kind; it is cleared with this one."""
        return Shelf(self.folder / name, self.carriage)

    def keep(self, answer: Answer) -> Answer:
        """Return an answer whose update is kept, unpacked; what can be none becomes a refusal.

        Raises
        ------
        OSError
            If the disk does not take it: that is no fault of the site.
        """
        if not answer.arrays:
            return answer
        fitted = self.carriage.fitted(answer.arrays)
        try:
            update = self.carriage.unpacked(answer.site, fitted)
            kept, digest = self._kept(answer.site, update)
        except UpdateError as error:
            return unfit(answer, error)
        except WeightsError as error:
            return unreadable(answer.site, error)
        if self.carriage.plan.compression is not None:
            digest = aggregation.fingerprint(fitted)
        return replace(answer, arrays=kept, update_sha256=digest)

    def _kept(self, site: str, update: dict[str, NDArray[Any]]) -> tuple[Mapping[str, NDArray[Any]], str]:
        """Return an update where it is kept, and its hash.

        Of a crash it need not come back: that ends the job, and the next one asks for these updates again.
        """
        try:
            self.places.pop()
        except IndexError:
            stored = Stored.write(self.folder / f"{site}.safetensors", update, durable=False)
            return stored, stored.sha256
        return update, digest_of(update)

    def clear(self) -> None:
        """Remove the updates."""
        shutil.rmtree(self.folder, ignore_errors=True)
