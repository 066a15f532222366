"""Proof: nothing identifying left the clinical zones, and every step stands in a ledger that verifies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance import keys, ledger, node
from appliance.demo.leaks import MINIMUM_LENGTH, LeakSearch
from appliance.demo.world import StageError
from appliance.federation import coordinator, provision

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.demo.world import Deadline, Site, World


def search_leaks(world: World, deadline: Deadline, more: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Search all that is not a clinical zone for every planted value, and for ``more``."""
    planted = more.union(*(site.sent.planted for site in world.sites))
    if world.following is not None:
        planted |= world.following.planted
    values = (value for value in planted if len(value) >= MINIMUM_LENGTH)
    search = LeakSearch(values, whole_words=not world.options.drawn)
    roots = searched_roots(world)
    leaks, files, size = search.files(roots)
    deadline.left()
    figures = world.figures
    figures["identifiers_searched"] = len(search.values)
    figures["identifiers_leaked"] = len({leak.value for leak in leaks})
    figures["files_searched"] = files
    figures["mib_searched"] = round(size / 2**20, 1)
    if leaks:
        places = sorted({leak.path for leak in leaks})
        count = figures["identifiers_leaked"]
        raise StageError(f"{count} identifying value(s) in {len(places)} file(s): {', '.join(places[:5])}")
    _expect_found(world, search)
    names = ("identifiers_searched", "identifiers_leaked", "files_searched", "mib_searched")
    return {name: figures[name] for name in names}


def searched_roots(world: World) -> list[Path]:
    """Return research zones, crossings, run folders, logs of nodes and coordinator, the coordinator."""
    roots = [world.coordinator]
    for site in world.sites:
        settings = site.settings
        roots += [settings.zone_root("research"), settings.crossing_out, settings.crossing_in]
        roots.append(node.run_dir(settings))
        if site.member is not None:
            roots += [site.member.log, site.member.out]
    roots += [m.log for m in world.crew.members if m.name == "coordinator"]
    return roots


def _expect_found(world: World, search: LeakSearch) -> None:
    """Make sure that the search finds what is there: a clinical zone holds all its values."""
    found, _, _ = search.files([world.sites[0].settings.zone_root("clinical") / "instances"])
    seen = len({leak.value for leak in found})
    world.figures["identifiers_found_in_clinical_zone"] = seen
    if not seen:
        raise StageError("the search found nothing in a clinical zone either; it proves nothing")


def verify_ledgers(world: World, deadline: Deadline) -> dict[str, Any]:
    """Verify every entry of every ledger."""
    reports: dict[str, ledger.Report] = {}
    for site in world.sites:
        reports |= _verify(site)
        deadline.left()
    reports["coordinator"] = _verify_coordinator(world)
    figures = world.figures
    figures["ledger_entries"] = sum(report.entries for report in reports.values())
    figures["ledger_ok"] = all(report.ok and report.entries for report in reports.values())
    figures["ledger_entries_by_zone"] = {name: report.entries for name, report in reports.items()}
    if not figures["ledger_ok"]:
        broken = [name for name, report in reports.items() if not report.ok or not report.entries]
        raise StageError(f"the ledger of {', '.join(broken)} does not verify")
    return {name: figures[name] for name in ("ledger_entries", "ledger_ok")}


def _verify_coordinator(world: World) -> ledger.Report:
    book = coordinator.open_book(provision.load(world.coordinator))
    key = keys.load_research_keys(world.coordinator).signing.public_key()
    try:
        return ledger.verify(book.engine, key, world.coordinator / "ledger.head")
    finally:
        book.engine.dispose()


def _verify(site: Site) -> dict[str, ledger.Report]:
    clinical, research = site.clinical(), site.research()
    try:
        return {
            f"{site.name} clinical": ledger.verify(
                clinical.engine, clinical.keys.signing.public_key(), node.head_path(site.settings, "clinical")
            ),
            f"{site.name} research": ledger.verify(
                research.engine, research.keys.signing.public_key(), node.head_path(site.settings, "research")
            ),
        }
    finally:
        clinical.engine.dispose()
        research.engine.dispose()
