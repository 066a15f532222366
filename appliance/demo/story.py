"""The whole story, stage by stage: each does its work within its deadline or says why not."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy.exc import SQLAlchemyError

from appliance.demo import stages_federation, stages_intake, stages_nodes, stages_proof, stages_result
from appliance.demo.crew import Crew
from appliance.demo.leaks import LeakSearchError
from appliance.demo.proc import PeakMemory
from appliance.demo.world import USER, Deadline, Options, StageError, World
from appliance.errors import ApplianceError
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.demo.screen import Screen

PSS_LIMIT_MIB: Final = 4096


@dataclass(frozen=True)
class Stage:
    """One stage: what it is called, what it tells, how long it may take."""

    name: str
    title: str
    told: str
    deadline_s: float
    work: Callable[[World, Deadline], dict[str, Any]]


STAGES: Final = (
    Stage(
        "set_up",
        "Three hospitals get ready",
        "Each has its own X-ray room, look and patients. Each joins the coordinator with a code.",
        180,
        stages_nodes.set_up,
    ),
    Stage(
        "start",
        "The nodes start",
        "Each has a DICOM listener and two zones, with a database, a broker and workers of their own.",
        240,
        stages_nodes.start_nodes,
    ),
    Stage(
        "send",
        "The PACS of each hospital sends its studies",
        "Over the network, as DICOM. A study is complete when nothing more has come for two seconds.",
        300,
        stages_intake.send,
    ),
    Stage(
        "deidentify",
        "The only door out: de-identification",
        "What can be judged crosses to research under a pseudonym; the rest is stopped, with a reason.",
        600,
        stages_intake.deidentify,
    ),
    Stage(
        "federate",
        "Three hospitals train one model",
        "A person at each hospital approves the plan. Models travel, studies stay.",
        420,
        stages_federation.federate,
    ),
    Stage(
        "approve",
        "The only door in: a model package",
        "The global model comes back as a signed ONNX package, and a person lets it serve.",
        120,
        stages_result.approve,
    ),
    Stage(
        "result",
        "The next patient",
        "A study arrives; report and picture go to the reading room under the patient's true name.",
        120,
        stages_result.next_study,
    ),
    Stage(
        "compare",
        "What was it worth?",
        "Each hospital's own model gets the same number of training steps, then all are measured everywhere.",
        240,
        stages_federation.compare,
    ),
    Stage(
        "leaks",
        "Did anything identifying get out?",
        "Every name, number and UID is searched in all files outside the clinical zones, in many spellings.",
        180,
        stages_proof.search_leaks,
    ),
    Stage(
        "ledgers",
        "Is every step on record?",
        "Each entry's place, link, content and signature is checked.",
        120,
        stages_proof.verify_ledgers,
    ),
)


@dataclass(frozen=True)
class Told:
    """How the story went."""

    ok: bool
    figures: dict[str, Any]
    folder: Path


class Interrupted(BaseException):
    """A signal asked us to end."""


def tell(
    *,
    screen: Screen,
    seed: int,
    once: bool,
    keep: bool,
    folder: Path | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    allow_pooling: bool = False,
) -> Told:
    """Run the demonstration.

    Parameters
    ----------
    once : bool
        End after the last stage instead of staying up until a signal.
    keep : bool
        Leave the folder when all went well; after a failure it always stays.
    folder : Path, optional
        New folder for everything; a temporary one by default.
    """
    root = _new_folder(folder)
    world = World(Options(root, seed, data, labels, allow_pooling), Crew(root / "logs"), screen)
    seconds: dict[str, float] = {}
    failed, ok, interrupted = "", False, False
    started = time.monotonic()
    try:
        with EndingSignals() as signals, world.crew, PeakMemory() as memory, signals.heeded():
            failed = _run(world, seconds)
            ok = not failed
            world.figures |= _memory(memory)
            if ok and not once:
                _stay(world)
    except Interrupted:
        interrupted = True
        screen.say("\nEnding everything that was started.")
    figures = {
        "ok": ok and (not interrupted or "ledgers" in seconds),
        "failed_stage": failed or None,
        "seed": seed,
        **world.figures,
        "seconds_total": round(time.monotonic() - started, 1) if once else round(sum(seconds.values()), 1),
        "seconds_per_stage": seconds,
    }
    remove_run_folders(world)
    if ok or (interrupted and not failed):
        _remove(root, keep=keep, screen=screen)
    return Told(bool(figures["ok"]), figures, root)


def _run(world: World, seconds: dict[str, float]) -> str:
    """Run all stages; return the name of the one that failed, or nothing."""
    for number, stage in enumerate(STAGES, start=1):
        world.screen.heading(number, len(STAGES), stage.title)
        world.screen.say(stage.told)
        began = time.monotonic()
        try:
            figures = stage.work(world, Deadline(stage.deadline_s))
        except (ApplianceError, TrainerError, LeakSearchError, SQLAlchemyError, OSError) as error:
            seconds[stage.name] = round(time.monotonic() - began, 2)
            world.screen.failed(f"{stage.name} ({stage.title})", _why(error), str(world.crew.logs))
            return stage.name
        seconds[stage.name] = round(time.monotonic() - began, 2)
        world.screen.measured(seconds[stage.name], figures)
    return ""


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"


def _memory(memory: PeakMemory) -> dict[str, Any]:
    memory.look()
    return {
        "peak_pss_mib": round(memory.peak_mib, 1),
        "peak_processes": memory.processes,
        "peak_pss_mib_by_program": memory.at_peak,
        "pss_limit_mib": PSS_LIMIT_MIB,
    }


def _stay(world: World) -> None:
    """Stay up until a signal; a process that ends is reported once."""
    screen = world.screen
    screen.say("\n[bold]All of it stays up.[/] Look around:")
    screen.say(f"  panel     {world.panel_url}")
    screen.say(f"  sign in   {USER} / {world.password}")
    for site in world.sites:
        screen.say(f"  {site.title}: DICOM {site.ae_title} at 127.0.0.1:{site.port}")
    screen.say("Ctrl-C ends everything and leaves nothing behind.")
    reported = False
    while True:
        time.sleep(1)
        try:
            world.check_crew()
        except ApplianceError as error:
            if not reported:
                screen.say(str(error))
            reported = True


def _new_folder(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="cloister-demo-"))
    if folder.exists() and any(folder.iterdir()):
        raise StageError(f"{folder}: not empty; expected a new folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()


def remove_run_folders(world: World) -> None:
    """Remove the folders of sockets that had to lie elsewhere, because the nodes' own paths are too long."""
    for site in world.sites:
        link = site.settings.data_root / "run"
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()


def _remove(root: Path, *, keep: bool, screen: Screen) -> None:
    if keep:
        screen.say(f"Everything is kept in {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)


class EndingSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into Interrupted inside :meth:`heeded`; elsewhere they do nothing.

    Python loses an exception that a handler raises while an object is destroyed, so it is raised again
    every ``AGAIN_S`` until it has left the block.
    """

    AGAIN_S: Final = 1.0

    def __init__(self) -> None:
        self._heeding = self._asked = False

    def __enter__(self) -> Self:
        asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        self._before = {number: signal.signal(number, self._interrupt) for number in asking}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Raise Interrupted in this block when a signal has come."""
        self._heeding = True
        try:
            if self._asked:
                raise Interrupted
            yield
        finally:
            self._heeding = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: object) -> None:
        del number, frame
        self._asked = True
        if self._heeding:
            signal.setitimer(signal.ITIMER_REAL, self.AGAIN_S, self.AGAIN_S)
            raise Interrupted


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
