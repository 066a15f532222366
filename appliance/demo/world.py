"""What all stages share: options, sites, processes, figures, and waiting with a deadline."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from appliance import node
from appliance.db.engine import make_engine, reading
from appliance.demo.plan import ROUNDS
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine, Executable

    from appliance.demo.cohorts import Cohort, CohortStudy
    from appliance.demo.crew import Crew, Member
    from appliance.demo.screen import Screen
    from appliance.settings import Settings, Zone

LOOK_EVERY_S: Final = 0.2
WORKSTATION_AE_TITLE: Final = "READING_ROOM"
WORKSTATION: Final = "reading room"
USER: Final = "demo"


class StageError(ApplianceError):
    """A stage did not do its work; the message says why."""


class Deadline:
    """Time that a stage has.

    Parameters
    ----------
    seconds : float
        From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; raises StageError when there are none."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise StageError(f"not done within {self._seconds:.0f} s")
        return left

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Wait until ``done()``; raises StageError naming ``what`` when time is up."""
        while not done():
            if self._ends - time.monotonic() <= 0:
                raise StageError(f"{what}: not within the stage's {self._seconds:.0f} s")
            time.sleep(LOOK_EVERY_S)


@dataclass(frozen=True)
class Options:
    """What the user asked for. ``data`` and ``labels`` come together."""

    root: Path
    seed: int
    data: Path | None = None
    labels: Path | None = None
    allow_pooling: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the studies are drawn here."""
        return self.data is None


@dataclass
class Site:
    """One hospital: its node and its studies."""

    index: int
    name: str
    title: str
    ae_title: str
    pacs_ae_title: str
    folder: Path
    settings: Settings
    cohort: Cohort | None = None
    port: int = 0
    user_id: str = ""
    member: Member | None = None
    _engines: dict[Zone, Engine] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The node's configuration file."""
        return self.folder / "cloister.toml"

    @property
    def sent(self) -> Cohort:
        """The studies; raises StageError before they are there."""
        if self.cohort is None:
            raise StageError(f"{self.title} has no studies yet")
        return self.cohort

    def clinical(self) -> node.ClinicalZone:
        """Open the clinical zone."""
        return node.open_clinical(self.settings)

    def research(self) -> node.ResearchZone:
        """Open the research zone."""
        return node.open_research(self.settings)

    def rows(self, zone: Zone, statement: Executable) -> list[tuple[Any, ...]]:
        """Ask a zone's database, reading only."""
        engine = self._engines.get(zone)
        if engine is None:
            engine = make_engine(node.database_url(self.settings, zone), read_only=True)
            self._engines[zone] = engine
        with reading(engine) as session:
            return [tuple(row) for row in session.execute(statement).all()]

    def number(self, zone: Zone, statement: Executable) -> int:
        """Ask a zone's database for one number; nothing counts as 0."""
        found = self.rows(zone, statement)
        return int(found[0][0] or 0) if found else 0


@dataclass
class World:
    """Everything that the stages work with; ``figures`` are what ``--json`` writes."""

    options: Options
    crew: Crew
    screen: Screen
    sites: list[Site] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    modalities: tuple[str, ...] = ()
    following: CohortStudy | None = None
    run_id: str = ""
    rounds: int = ROUNDS
    workstation: Member | None = None
    password: str = ""
    panel_url: str = ""

    @property
    def coordinator(self) -> Path:
        """Root of the coordinator."""
        return self.options.root / "coordinator"

    def check_crew(self) -> None:
        """Raise when a process ended that should run."""
        for member in self.crew.standing:
            member.check()

    def until(self, deadline: Deadline, what: str, done: Callable[[], bool]) -> None:
        """Wait for a condition, as long as everything that should run does run."""

        def look() -> bool:
            self.check_crew()
            return done()

        deadline.until(what, look)


def json_lines(member: Member) -> list[dict[str, Any]]:
    """Return what a program wrote to its standard output so far, line by line."""
    return [json.loads(line) for line in member.lines()]
