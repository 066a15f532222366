"""Studies go in: sent by a PACS, received, assembled, de-identified, labelled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob, Instance, QuarantineItem, Study, StudyRevision, StudyState
from appliance.db.research import Label, ResearchInstance
from appliance.demo.world import Site, StageError, json_lines

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.demo.cohorts import CohortStudy
    from appliance.demo.crew import Member
    from appliance.demo.screen import Bars
    from appliance.demo.world import Deadline, World


@dataclass(frozen=True)
class Standing:
    """How far one hospital's clinical zone is."""

    instances: int
    assembled: int
    released: int
    quarantined: int
    dead_jobs: int


def send(world: World, deadline: Deadline) -> dict[str, Any]:
    """Let every PACS send its studies and wait until they are assembled."""
    senders = [(site, _start_pacs(world, site, site.sent.studies)) for site in world.sites]
    expected = {site.name: sum(len(study.paths) for study in site.sent.studies) for site in world.sites}

    def all_assembled(bars: Bars) -> bool:
        done = True
        for site, member in senders:
            lines = json_lines(member)
            if lines:
                bars.show(f"{site.title}: sent", lines[-1]["sent"], lines[-1]["total"])
            standing = look(site)
            bars.show(f"{site.title}: assembled", standing.assembled, len(site.sent.studies))
            code = member.process.poll()
            if code not in (None, 0):
                raise StageError(f"the PACS of {site.title} ended with {code}: {_reasons(lines)}")
            done = done and code == 0 and standing.assembled >= len(site.sent.studies)
        return done

    with world.screen.bars() as bars:
        world.until(deadline, "all studies received and assembled", lambda: all_assembled(bars))
    standings = [look(site) for site in world.sites]
    world.figures["instances_sent"] = sum(json_lines(member)[-1]["sent"] for _, member in senders)
    world.figures["instances_received"] = sum(standing.instances for standing in standings)
    world.figures["studies_assembled"] = sum(standing.assembled for standing in standings)
    if world.figures["instances_received"] != sum(expected.values()):
        raise StageError(
            f"{world.figures['instances_received']} instances of {sum(expected.values())} received"
        )
    return {
        name: world.figures[name] for name in ("instances_sent", "instances_received", "studies_assembled")
    }


def deidentify(world: World, deadline: Deadline) -> dict[str, Any]:
    """Wait until every study is in the research zone or in quarantine, then import the labels."""
    wanted = {site.name: len(site.sent.studies) for site in world.sites}

    def all_judged(bars: Bars) -> bool:
        done = True
        for site in world.sites:
            standing = look(site)
            if standing.dead_jobs:
                raise StageError(f"{standing.dead_jobs} job(s) of {site.title} are dead: {_dead(site)}")
            judged = standing.released + standing.quarantined
            bars.show(f"{site.title}: judged", judged, wanted[site.name])
            arrived, released = crossed(site), released_instances(site)
            bars.show(f"{site.title}: crossed over", arrived, max(released, 1))
            done = done and judged >= wanted[site.name] and arrived >= released > 0
        return done

    with world.screen.bars() as bars:
        world.until(deadline, "all studies de-identified or quarantined", lambda: all_judged(bars))
    standings = [look(site) for site in world.sites]
    world.figures["studies_deidentified"] = sum(standing.released for standing in standings)
    world.figures["studies_quarantined"] = sum(standing.quarantined for standing in standings)
    world.figures["quarantine_reasons"] = _quarantine_reasons(world)
    if world.options.drawn:
        _expect_quarantine(world)
    labels = import_labels(world, deadline)
    world.figures["labels_accepted"], world.figures["label_lines_refused"] = labels
    names = (
        "studies_deidentified",
        "studies_quarantined",
        "quarantine_reasons",
        "labels_accepted",
        "label_lines_refused",
    )
    return {name: world.figures[name] for name in names}


def look(site: Site) -> Standing:
    """Read how far a hospital is."""
    states = select(StudyRevision.deidentification_state, func.count()).group_by(
        StudyRevision.deidentification_state
    )
    by_state = {str(state): int(count) for state, count in site.rows("clinical", states)}
    jobs = select(ClinicalJob.state, func.count()).group_by(ClinicalJob.state)
    by_job = {str(state): int(count) for state, count in site.rows("clinical", jobs)}
    assembled = select(func.count()).select_from(Study).where(Study.state == StudyState.ASSEMBLED)
    return Standing(
        instances=site.number("clinical", select(func.count()).select_from(Instance)),
        assembled=site.number("clinical", assembled),
        released=by_state.get("released", 0) + by_state.get("partial", 0),
        quarantined=by_state.get("quarantined", 0),
        dead_jobs=by_job.get(WorkState.DEAD, 0),
    )


def start_pacs(world: World, site: Site, name: str, paths: list[Path]) -> Member:
    """Let a hospital's PACS send these files."""
    listing = site.folder / f"{name}.txt"
    listing.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    argv = ["-m", "appliance.demo.pacs", str(site.folder), "--list", str(listing), "--port", str(site.port)]
    titles = ["--calling-ae-title", site.pacs_ae_title, "--called-ae-title", site.ae_title]
    return world.crew.start(name, [*argv, *titles])


def _start_pacs(world: World, site: Site, studies: tuple[CohortStudy, ...]) -> Member:
    return start_pacs(world, site, f"pacs-{site.name}", [path for study in studies for path in study.paths])


def crossed(site: Site) -> int:
    """Return how many instances the research zone holds."""
    return site.number("research", select(func.count()).select_from(ResearchInstance))


def released_instances(site: Site) -> int:
    """Return how many instances the clinical zone let through."""
    return site.number("clinical", select(func.sum(StudyRevision.released_count)))


def _dead(site: Site) -> str:
    statement = (
        select(ClinicalJob.kind, ClinicalJob.reason).where(ClinicalJob.state == WorkState.DEAD).limit(3)
    )
    return "; ".join(f"{kind}: {reason}" for kind, reason in site.rows("clinical", statement))


def _quarantine_reasons(world: World) -> dict[str, int]:
    found: dict[str, int] = {}
    statement = select(QuarantineItem.reason_code, func.count()).group_by(QuarantineItem.reason_code)
    for site in world.sites:
        for code, count in site.rows("clinical", statement):
            found[str(code)] = found.get(str(code), 0) + int(count)
    return found


def _expect_quarantine(world: World) -> None:
    """One study of each hospital has a patient ID that no pseudonym may be made of."""
    for site in world.sites:
        planned = sum(not study.releasable for study in site.sent.studies)
        standing = look(site)
        if standing.quarantined != planned or standing.released != len(site.sent.studies) - planned:
            raise StageError(
                f"{site.title}: {standing.released} released and {standing.quarantined} quarantined; "
                f"expected {len(site.sent.studies) - planned} and {planned}"
            )


def import_labels(world: World, deadline: Deadline) -> tuple[int, int]:
    """Import every hospital's labels file; return how many rows were accepted and how many refused."""
    members = []
    for site in world.sites:
        argv = ["-m", "appliance.cli", "labels", "import", str(site.sent.labels_csv), "--json"]
        members.append(world.crew.start(f"labels-{site.name}", [*argv, "--config", str(site.config)]))
    accepted = refused = 0
    for site, member in zip(world.sites, members, strict=True):
        report = json.loads(world.crew.result(member, deadline.left()))
        accepted += report["accepted"]
        refused += len(report["problems"])
        if world.options.drawn and len(report["problems"]) != site.sent.label_rows_wrong:
            raise StageError(
                f"{site.title}: {len(report['problems'])} lines refused of the labels file; "
                f"expected {site.sent.label_rows_wrong}"
            )

    def arrived() -> bool:
        return sum(_labels(site) for site in world.sites) >= accepted

    world.until(deadline, "the labels crossed over by pseudonym", arrived)
    return accepted, refused


def _labels(site: Site) -> int:
    return site.number("research", select(func.count()).select_from(Label))


def _reasons(lines: list[dict[str, Any]]) -> str:
    return json.dumps(lines[-1]["reasons"]) if lines else "nothing was sent"
