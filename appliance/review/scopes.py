"""How far a decision reaches: one instance, its series, or all instances of the machine that made it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, Select, or_, select

from anonymizer import verdicts
from appliance.db.clinical import Decision, DecisionState, Instance, QuarantineItem, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from anonymizer.verdicts import Verdict

STAGE: Final = "deidentify"
INSTANCE: Final = "instance"
SERIES: Final = "series"
MACHINE: Final = "machine"
SCOPES: Final = (INSTANCE, SERIES, MACHINE)
RELEASE: Final = "release"
KEEP: Final = "keep"


@dataclass(frozen=True)
class Machine:
    """What instances of one machine and one kind have in common; ``rows`` and ``columns`` in pixels."""

    sop_class_uid: str
    modality: str
    manufacturer: str
    model: str
    rows: int | None
    columns: int | None

    @property
    def is_named(self) -> bool:
        """Whether it says which machine it is."""
        return bool(self.manufacturer and self.model)


@dataclass(frozen=True)
class Place:
    """Where an instance lies, as far as decisions reach."""

    instance_id: str
    series_id: str
    machine: Machine


def place_of(session: Session, instance_id: str) -> Place | None:
    """Return where an instance lies; None when it is gone."""
    row = session.execute(
        select(Instance, Series).join(Series).where(Instance.id == instance_id)
    ).one_or_none()
    return None if row is None else place(row.Instance, row.Series)


def place(instance: Instance, series: Series) -> Place:
    """Return where an instance lies."""
    machine = Machine(
        instance.sop_class_uid,
        series.modality,
        series.manufacturer,
        series.manufacturer_model_name,
        instance.rows,
        instance.columns,
    )
    return Place(instance.id, instance.series_id, machine)


def waiting(place: Place, reason_code: str, scope: str) -> Select[QuarantineItem]:
    """Select the items of a scope that are open, undecided, and there for the same reason."""
    found = select(QuarantineItem).where(
        QuarantineItem.stage == STAGE,
        QuarantineItem.reason_code == reason_code,
        QuarantineItem.resolved_at.is_(None),
        QuarantineItem.resolution == "",
    )
    if scope == INSTANCE:
        return found.where(QuarantineItem.instance_id == place.instance_id)
    joined = found.join(Instance, Instance.id == QuarantineItem.instance_id)
    if scope == SERIES:
        return joined.where(Instance.series_id == place.series_id)
    return joined.join(Series, Series.id == Instance.series_id).where(*_of_machine(place.machine))


def _of_machine(machine: Machine) -> tuple[ColumnElement[bool], ...]:
    return (
        Instance.sop_class_uid == machine.sop_class_uid,
        Series.modality == machine.modality,
        Series.manufacturer == machine.manufacturer,
        Series.manufacturer_model_name == machine.model,
        Instance.rows.is_not_distinct_from(machine.rows),
        Instance.columns.is_not_distinct_from(machine.columns),
    )


@dataclass
class Standing:
    """The decisions in force that may concern a study; ``used`` collects those that did."""

    rows: Sequence[Decision]
    used: set[str] = field(default_factory=set)

    @classmethod
    def of_study(cls, session: Session, study_id: str) -> Standing:
        """Read them."""
        concerns = or_(Decision.study_id == study_id, Decision.scope == MACHINE)
        rows = session.scalars(
            select(Decision)
            .where(Decision.state == DecisionState.STANDING, concerns)
            .order_by(Decision.decided_at, Decision.id)
        ).all()
        return cls(rows)

    def release(self, place: Place, reason_code: str) -> Verdict:
        """Return what was decided of instances here that are stopped for a reason; nothing if nothing was."""
        found = verdicts.NONE
        for row in self._reaching(place, reason_code, RELEASE):
            found |= verdicts.parse(row.verdict)
            self.used.add(row.id)
        return found

    def keeps(self, place: Place, reason_code: str) -> bool:
        """Whether what is stopped here for this reason stays inside without asking again."""
        rows = self._reaching(place, reason_code, KEEP)
        self.used.update(row.id for row in rows)
        return bool(rows)

    def _reaching(self, place: Place, reason_code: str, outcome: str) -> list[Decision]:
        return [
            row
            for row in self.rows
            if (row.outcome, row.reason_code) == (outcome, reason_code) and _reaches(row, place)
        ]


def _reaches(row: Decision, place: Place) -> bool:
    if row.scope == INSTANCE:
        return row.instance_id == place.instance_id
    if row.scope == SERIES:
        return row.series_id == place.series_id
    return row.machine == asdict(place.machine)
