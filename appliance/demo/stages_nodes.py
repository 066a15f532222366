"""First stages: studies are drawn, a federation is set up, three nodes start and learn whom they know."""

from __future__ import annotations

import json
import secrets
import socket
from typing import TYPE_CHECKING, Any, Final

import httpx

from appliance import health, node, peers, rules
from appliance.auth import ROLES, users
from appliance.db.engine import writing
from appliance.demo import own_data
from appliance.demo.cohorts import LABEL, Cohort, draw_next
from appliance.demo.hospitals import HOSPITALS
from appliance.demo.world import USER, WORKSTATION, WORKSTATION_AE_TITLE, Site, StageError, json_lines
from appliance.federation import joining, workspaces
from appliance.federation import provision as coordination
from appliance.settings import load_settings

if TYPE_CHECKING:
    from appliance.demo.crew import Member
    from appliance.demo.screen import Bars
    from appliance.demo.world import Deadline, World

QUIET_PERIOD_S: Final = 2
CONFIG: Final = """\
# One hospital of the demonstration.
name = "{name}"
data_root = "data"

[dicom]
ae_title = "{ae_title}"
host = "127.0.0.1"
port = 0
min_free_mib = 64

[assembly]
quiet_period_s = {quiet_period_s}
max_wait_s = 120

[deidentification]
project = "chest-demo"

[training]
child_idle_s = 5

[web]
enabled = {web}
host = "127.0.0.1"
port = 0

[federation]
minimum_cohort = 5
"""


def set_up(world: World, deadline: Deadline) -> dict[str, Any]:
    """Draw studies (or read the user's), provision the federation, write three configurations."""
    for index, hospital in enumerate(HOSPITALS):
        add_site(
            world, hospital.site, hospital.title, hospital.ae_title, hospital.pacs_ae_title, web=index == 0
        )
    if world.options.drawn:
        start_drawing(world)
    else:
        _read_own(world)
    provision(world, deadline)
    return {"hospitals": len(world.sites), "joined": len(world.sites)}


def add_site(
    world: World, name: str, title: str, ae_title: str, pacs_ae_title: str, *, web: bool = False
) -> Site:
    """Make a hospital's folder and configuration."""
    folder = world.options.root / name
    folder.mkdir(parents=True)
    config = folder / "cloister.toml"
    text = CONFIG.format(
        name=name, ae_title=ae_title, quiet_period_s=QUIET_PERIOD_S, web="true" if web else "false"
    )
    config.write_text(text, encoding="utf-8")
    site = Site(
        index=len(world.sites),
        name=name,
        title=title,
        ae_title=ae_title,
        pacs_ae_title=pacs_ae_title,
        folder=folder,
        settings=load_settings(config),
    )
    world.sites.append(site)
    return site


def provision(world: World, deadline: Deadline) -> None:
    """Start the coordinator and let every hospital join with a code of its own; its keys are made there."""
    argv = ["-m", "appliance.cli", "coordinator"]
    world.crew.run("coordinator-init", [*argv, "init", str(world.coordinator)], deadline.left())
    world.crew.start("coordinator", [*argv, "up", str(world.coordinator)], standing=True)
    federation = coordination.load(world.coordinator)
    world.until(deadline, "the coordinator answers", lambda: _answers(federation.host, federation.port))
    for site in world.sites:
        wanted = [*argv, "invite", str(world.coordinator), "--site", site.name, "--json"]
        code = json.loads(world.crew.run(f"invite-{site.name}", wanted, deadline.left()))["code"]
        joined = joining.join(code, site.settings)
        workspaces.enable(site.config, joined.site, joined.workspace)
        site.settings = load_settings(site.config)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def start_drawing(world: World) -> None:
    """Let every hospital's X-ray room draw, beside everything else."""
    for site in world.sites:
        argv = ["-m", "appliance.demo.modality", str(site.folder / "room"), "--hospital", str(site.index)]
        world.crew.start(f"xray-{site.name}", [*argv, "--seed", str(world.options.seed)])
    world.label, world.modalities = LABEL, ("DX",)
    world.following = draw_next(HOSPITALS[0], 0, world.options.root / "next", world.options.seed, lesion=True)


def finish_drawing(world: World, deadline: Deadline) -> None:
    """Wait for the X-ray rooms and take their studies over."""
    if not world.options.drawn:
        return
    rooms = [(site, _room(world, site)) for site in world.sites]
    with world.screen.bars() as bars:
        world.until(deadline, "drawing the studies", lambda: _drawn(rooms, bars))
    for site, member in rooms:
        if member.process.returncode != 0:
            raise StageError(f"drawing ended with {member.process.returncode}; its log is {member.log}")
        site.cohort = Cohort.read(site.folder / "room" / "cohort.json")


def _room(world: World, site: Site) -> Member:
    return next(member for member in world.crew.members if member.name == f"xray-{site.name}")


def _drawn(rooms: list[tuple[Site, Member]], bars: Bars) -> bool:
    for site, member in rooms:
        lines = json_lines(member)
        if lines:
            bars.show(f"{site.title} draws", lines[-1]["done"], lines[-1]["total"])
    return all(member.process.poll() is not None for _, member in rooms)


def _read_own(world: World) -> None:
    options = world.options
    if options.data is None or options.labels is None:
        raise StageError("--data and --labels come together")
    found = own_data.read_own(
        options.data, options.labels, options.root / "labels", tuple(site.name for site in world.sites)
    )
    for site, cohort in zip(world.sites, found.cohorts, strict=True):
        site.cohort = cohort
    world.label, world.modalities, world.following = found.label, found.modalities, found.following
    if found.skipped_files:
        world.screen.say(f"{found.skipped_files} file(s) are no DICOM studies and stay where they are.")


def start_nodes(world: World, deadline: Deadline) -> dict[str, Any]:
    """Start nodes, coordinator and workstation; make peers, users and the way of results."""
    argv = ["-m", "appliance.demo.workstation", str(world.options.root / "workstation")]
    workstation = world.crew.start("workstation", [*argv, "--ae-title", WORKSTATION_AE_TITLE], standing=True)
    world.workstation = workstation
    bring_up(world, deadline)
    world.until(deadline, "the workstation listens", lambda: bool(workstation.lines()))
    port = int(json_lines(workstation)[0]["port"])
    room = peers.NewPeer(WORKSTATION, WORKSTATION_AE_TITLE, "127.0.0.1", port, is_destination=True)
    for site in world.sites:
        introduce(world, site, room if site.index == 0 else None)
    world.panel_url = _sign_in(world, deadline)
    finish_drawing(world, deadline)
    return {
        "processes": sum(len(health.processes(site.settings)) for site in world.sites),
        "panel": world.panel_url,
    }


def bring_up(world: World, deadline: Deadline) -> None:
    """Start every node, and wait until all their processes are well."""
    for site in world.sites:
        argv = ["-m", "appliance.cli", "up", "--config", str(site.config)]
        site.member = world.crew.start(f"node-{site.name}", argv, standing=True)
    with world.screen.bars() as bars:
        world.until(deadline, "every process of the nodes is up", lambda: _all_well(world, bars))


def _all_well(world: World, bars: Bars) -> bool:
    well = True
    for site in world.sites:
        ports = node.run_dir(site.settings) / "ports"
        names = health.processes(site.settings)
        up = sum(name in health.REDIS_PROCESSES or _beats(site, name) for name in names)
        bars.show(f"{site.title} starts", up, len(names))
        well = well and up == len(names) and (ports / "scp").is_file() and health.overall(site.settings).well
        if (ports / "scp").is_file():
            site.port = int((ports / "scp").read_text(encoding="ascii"))
    return well


def _beats(site: Site, name: str) -> bool:
    beat = health.last_beat(site.settings, name)
    return beat is not None and not beat.gone


def introduce(world: World, site: Site, destination: peers.NewPeer | None) -> None:
    """Tell a node its PACS, its user and perhaps where results go."""
    world.password = world.password or secrets.token_urlsafe(12)
    zone = site.clinical()
    with writing(zone.engine) as session:
        pacs = peers.NewPeer(f"{site.title} PACS", site.pacs_ae_title, "127.0.0.1", may_send=True)
        peers.add_peer(session, zone.ledger, pacs)
        user = users.add_user(session, zone.ledger, name=USER, password=world.password, rights=ROLES["admin"])
        site.user_id = user.id
        if destination is not None:
            peers.add_peer(session, zone.ledger, destination)
            change = rules.RuleChange(action={"destinations": [destination.name]})
            rules.change_rule(session, zone.ledger, "everything", change, actor=user.id)
    zone.engine.dispose()


def _sign_in(world: World, deadline: Deadline) -> str:
    """Sign in to the panel as a person would; return its address."""
    settings = world.sites[0].settings
    url = f"http://127.0.0.1:{node.bound_port(settings, 'web', deadline.left())}"
    with httpx.Client(base_url=url, timeout=min(20.0, deadline.left())) as client:
        answer = client.post("/api/v1/session", json={"name": USER, "password": world.password})
        if answer.status_code != httpx.codes.OK:
            raise StageError(f"signing in to the panel was answered with {answer.status_code}")
    return url
