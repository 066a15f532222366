"""Federated training: a plan is proposed, approved by people, trained in rounds; then what it was worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import research_client
from appliance.db.base import WorkState
from appliance.db.research import Receipt, Round, Subject
from appliance.demo import plan as plans
from appliance.demo.world import StageError, json_lines
from appliance.federation import coordinator, progress, provision

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from appliance.demo.crew import Member
    from appliance.demo.screen import Bars
    from appliance.demo.world import Deadline, Site, World
    from appliance.federation.progress import RunProgress

RUN_ID: Final = "chest-demo-1"
# By how much the global model must beat each hospital's own model, both measured at the other hospitals.
MARGIN: Final = 0.03


def federate(world: World, deadline: Deadline) -> dict[str, Any]:
    """Write the plan down, approve it at every site, follow the rounds to the end."""
    cohort = min(site.number("research", select(func.count()).select_from(Subject)) for site in world.sites)
    least = min(20, max(5, cohort // 2))
    wanted = plans.Wanted(world.label, world.modalities, world.options.seed, least, world.rounds)
    content = plans.plan(wanted, RUN_ID, [site.name for site in world.sites])
    path = world.options.root / "plan.json"
    path.write_text(content.dumps(), encoding="utf-8")
    argv = ["-m", "appliance.cli", "coordinator", "run", str(world.coordinator), str(path), "--json"]
    world.run_id = json.loads(world.crew.run("coordinator-run", argv, deadline.left()))["run_id"]
    waiting = list(world.sites)
    engine = coordinator.open_book(provision.load(world.coordinator)).engine

    def ended(bars: Bars) -> bool:
        _approve(world, waiting)
        now = _progress(engine, world.run_id)
        bars.show("rounds", now.finished_rounds, now.total_rounds)
        for site in world.sites:
            done = select(func.count()).select_from(Round).where(Round.state == WorkState.DONE)
            bars.show(f"{site.title} trains", site.number("research", done), now.total_rounds + 1)
        if now.state in {"dead", "stopped"}:
            raise StageError(f"the run is {now.state}: {now.reason}")
        return now.state == "done"

    with world.screen.bars() as bars:
        world.until(deadline, "the federation's rounds", lambda: ended(bars))
    return _measured(world, _progress(engine, world.run_id))


def _approve(world: World, waiting: list[Site]) -> None:
    """Approve the plan where it is asked for, through the call that panel and command line use."""
    for site in list(waiting):
        client = research_client.connect(site.settings)
        try:
            pending = [view for view in client.protocols() if view.state == "pending"]
        except research_client.ResearchUnavailableError:
            continue
        for view in pending:
            client.decide(
                view.id, "approve", site.user_id, "approved in the demonstration", view.shown_sha256
            )
            world.screen.say(f"  {site.title} approves the plan {view.plan_sha256[:12]}.")
            waiting.remove(site)


def _progress(engine: Engine, run_id: str) -> RunProgress:
    found = progress.run(engine, run_id)
    if found is None:
        raise StageError("the coordinator does not know the run")
    return found


def _measured(world: World, run: RunProgress) -> dict[str, Any]:
    figures = world.figures
    figures["rounds_completed"] = run.finished_rounds
    figures["sites_per_round"] = [sum(site.accepted for site in one.sites) for one in run.rounds]
    figures["bytes_sent_per_round"] = [sum(site.bytes_received for site in one.sites) for one in run.rounds]
    figures["seconds_per_round"] = [round(one.seconds, 2) for one in run.rounds]
    figures["train_seconds_per_round"] = _train_seconds(world, run)
    figures["engine_jobs"] = run.engine_jobs
    figures["receipts"] = sum(
        site.number("research", select(func.count()).select_from(Receipt)) for site in world.sites
    )
    figures["global_auc_per_round"] = [_mean_auc(one.sites) for one in run.rounds[1:]] + [
        _mean_auc(run.final)
    ]
    if run.finished_rounds != run.total_rounds or min(figures["sites_per_round"]) < len(world.sites):
        raise StageError("a round is missing, or a site in one")
    names = (
        "rounds_completed",
        "sites_per_round",
        "bytes_sent_per_round",
        "receipts",
        "global_auc_per_round",
    )
    return {name: figures[name] for name in names}


def _train_seconds(world: World, run: RunProgress) -> list[float]:
    """Return, for each round, how long the slowest site trained."""
    slowest: dict[int, float] = {}
    statement = select(Round.number, Round.train_seconds).where(Round.kind == "train")
    for site in world.sites:
        for number, seconds in site.rows("research", statement):
            slowest[number] = max(slowest.get(number, 0.0), seconds or 0.0)
    return [round(slowest.get(one.number, 0.0), 2) for one in run.rounds]


def _mean_auc(sites: tuple[progress.SiteProgress, ...]) -> float | None:
    found = [(site.metrics.get("auc") or {}).get("estimate") for site in sites]
    values = [value for value in found if value is not None]
    return round(sum(values) / len(values), 4) if values else None


def compare(world: World, deadline: Deadline) -> dict[str, Any]:
    """Train each hospital's own model and, if allowed, one on pooled data; measure all at every site."""
    pooled = world.options.drawn or world.options.allow_pooling
    spec: dict[str, Any] = {
        "sites": {site.name: str(site.config) for site in world.sites},
        "coordinator": str(world.coordinator),
        "run_id": world.run_id,
        "pooled": pooled,
    }
    path = world.options.root / "baselines.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    parts = {"own": ["global", *spec["sites"]]} | ({"pooled": ["pooled"]} if pooled else {})
    members = {}
    for part, models in parts.items():
        argv = ["-m", "appliance.demo.baselines", str(path)]
        argv += [word for model in models for word in ("--model", model)]
        members[part] = world.crew.start(f"baselines-{part}", argv)
    with world.screen.bars() as bars:
        world.until(deadline, "training the models to compare with", lambda: _trained(members, bars))
    auc: dict[str, dict[str, float | None]] = {}
    for member in members.values():
        if member.process.returncode != 0:
            raise StageError(f"{member.name} ended with {member.process.returncode}; its log is {member.log}")
        auc |= json_lines(member)[-1]["auc"]
    return judge(world, auc)


def _trained(members: dict[str, Member], bars: Bars) -> bool:
    for part, member in members.items():
        lines = json_lines(member)
        if lines:
            bars.show(f"{part} models", lines[-1]["done"], lines[-1]["total"])
    return all(member.process.poll() is not None for member in members.values())


def judge(world: World, auc: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Write the figures down; with drawn studies the global model must beat every local one elsewhere."""
    names = [site.name for site in world.sites]
    figures = world.figures
    figures["global_auc"] = mean(auc["global"])
    figures["global_auc_per_site"] = auc["global"]
    figures["pooled_auc"] = mean(auc["pooled"]) if "pooled" in auc else None
    figures["local_auc_per_site"] = {
        name: {"own": auc[name][name], "others": mean(auc[name], leave_out=name)} for name in names
    }
    figures["margins"] = margins(auc, names)
    figures["margin_required"] = MARGIN if world.options.drawn else None
    small = [name for name, margin in figures["margins"].items() if margin is None or margin < MARGIN]
    if world.options.drawn and small:
        raise StageError(
            f"the global model is not better by {MARGIN} than the own model of {', '.join(small)} "
            f"at the other hospitals: {figures['margins']}"
        )
    shown = ("global_auc", "local_auc_per_site", "pooled_auc", "margins")
    return {name: figures[name] for name in shown}


def margins(auc: dict[str, dict[str, float | None]], names: list[str]) -> dict[str, float | None]:
    """Return, for each site, global minus own model, both measured at the other sites."""
    found: dict[str, float | None] = {}
    for name in names:
        ours, own = mean(auc["global"], leave_out=name), mean(auc[name], leave_out=name)
        found[name] = None if ours is None or own is None else round(ours - own, 4)
    return found


def mean(by_site: dict[str, float | None], leave_out: str | None = None) -> float | None:
    """Return the mean over sites that have a value."""
    values = [value for site, value in by_site.items() if site != leave_out and value is not None]
    return round(sum(values) / len(values), 4) if values else None
