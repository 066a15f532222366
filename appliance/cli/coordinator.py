"""``cloister coordinator``: set up and run a federation's coordinator."""

import json
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WORK_FAILED, membership

if TYPE_CHECKING:
    from appliance.federation.progress import RunProgress

_Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="A federation's coordinator.", no_args_is_help=True)
    group.command("init")(init)
    group.command("up")(up)
    group.command("run")(run)
    group.command("stop")(stop)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("offer")(offer)
    group.command("status")(status)
    membership.register(group)
    app.add_typer(group, name="coordinator")


def init(
    folder: _Folder,
    host: Annotated[str, typer.Option(help="Name by which sites reach the coordinator.")] = "localhost",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 0,
    as_json: _AsJSON = False,
) -> None:
    """Make a coordinator in a new folder: its root certificate, its server, no site yet."""
    from appliance.federation import provision  # noqa: PLC0415 - other commands start without it

    federation = provision.create(folder, host, port)
    if as_json:
        typer.echo(json.dumps({"host": federation.host, "port": federation.port}, indent=2))
        return
    typer.echo(f"coordinator {federation.host}:{federation.port}")
    typer.echo(f"Start it with: cloister coordinator up {folder}")
    typer.echo(f"Invite a site: cloister coordinator invite {folder} --site NAME")


def up(folder: _Folder) -> None:
    """Run the coordinator until Ctrl-C or SIGTERM."""
    from appliance import logs  # noqa: PLC0415 - other commands start without it
    from appliance.federation import coordinator, provision  # noqa: PLC0415 - as above
    from appliance.settings import LoggingSettings  # noqa: PLC0415 - as above

    federation = provision.load(folder)
    logs.setup(LoggingSettings(), "coordinator")
    logging.getLogger("nvflare").setLevel(logging.WARNING)
    stopping = threading.Event()
    coordinator.stop_on_signals(stopping)
    coordinator.run(federation, stopping)
    coordinator.leave()


def run(
    folder: _Folder,
    plan: Annotated[Path, typer.Argument(help="The plan, as JSON; run_id and expires_at may be left out.")],
    wait: Annotated[bool, typer.Option(help="Wait until the run ends; exit 1 when it failed.")] = False,
    as_json: _AsJSON = False,
) -> None:
    """Write a new run down; the running coordinator starts it when enough sites are there."""
    from appliance.federation import newrun  # noqa: PLC0415 - other commands start without it

    run_id = newrun.add(folder, plan)
    if not wait:
        typer.echo(json.dumps({"run_id": run_id}) if as_json else run_id)
        return
    ended = _follow(folder, run_id, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(_plain(ended), indent=2))
    if ended.state != "done":
        raise typer.Exit(WORK_FAILED)


def stop(folder: _Folder, run_id: Annotated[str, typer.Argument()]) -> None:
    """Stop a run; its finished rounds stay."""
    from appliance.db.coordinator import RunState  # noqa: PLC0415 - other commands start without it
    from appliance.federation import coordinator, provision  # noqa: PLC0415 - as above

    book = coordinator.open_book(provision.load(folder))
    book.end_run(run_id, RunState.STOPPED, "stopped at the command line")
    typer.echo(f"{run_id}: {book.state(run_id)}")


def pause(
    folder: _Folder,
    run_id: Annotated[str, typer.Argument()],
    reason: Annotated[str, typer.Option(help="Why; shown with the run.")] = "paused at the command line",
) -> None:
    """Let a run rest at its last finished round until it is resumed."""
    from appliance.federation import coordinator, provision  # noqa: PLC0415 - other commands start without it

    book = coordinator.open_book(provision.load(folder))
    book.pause(run_id, reason)
    typer.echo(f"{run_id}: {book.state(run_id)}")


def resume(folder: _Folder, run_id: Annotated[str, typer.Argument()]) -> None:
    """Let a dead, stopped or paused run go on from its last finished round."""
    from appliance.federation import coordinator, provision  # noqa: PLC0415 - other commands start without it

    coordinator.open_book(provision.load(folder)).reopen(run_id)
    typer.echo(f"{run_id}: goes on when enough sites are there")


def offer(folder: _Folder, run_id: Annotated[str, typer.Argument()]) -> None:
    """Offer the final model of a done run once more, to the sites that miss it."""
    from appliance.federation import coordinator, members, provision  # noqa: PLC0415 - as above

    book = coordinator.open_book(provision.load(folder))
    missing = book.offer(run_id, members.active(book.engine))
    typer.echo(f"{run_id}: offered to {', '.join(sorted(missing))} when one of them is there")


def status(
    folder: _Folder,
    run_id: Annotated[str | None, typer.Option("--run", help="This run alone.")] = None,
    as_json: _AsJSON = False,
) -> None:
    """Show how far the runs are."""
    from appliance.federation import coordinator, progress, provision  # noqa: PLC0415 - as above

    found = progress.runs(coordinator.open_book(provision.load(folder)).engine)
    if run_id is not None:
        found = [one for one in found if one.run_id == run_id]
        if not found:
            typer.echo("there is no such run", err=True)
            raise typer.Exit(WORK_FAILED)
    if as_json:
        typer.echo(json.dumps([_plain(one) for one in found], indent=2))
        return
    for one in found:
        typer.echo(_line(one))


def _follow(folder: Path, run_id: str, *, quiet: bool) -> "RunProgress":
    """Wait until a run has ended, saying how far it is."""
    from appliance.federation import coordinator, progress, provision  # noqa: PLC0415 - as above
    from appliance.federation.errors import CoordinatorError  # noqa: PLC0415 - as above

    engine = coordinator.open_book(provision.load(folder)).engine
    said = ""
    while True:
        now = progress.run(engine, run_id)
        if now is None:
            raise CoordinatorError("the run vanished from the book")
        if not quiet and _line(now) != said:
            said = _line(now)
            typer.echo(said)
        if now.state in {"done", "dead", "stopped"}:
            return now
        time.sleep(0.5)


def _suspect(site: str, unlike: int, compared: int) -> str:
    return f", {site} unlike the others in {unlike} of {compared} rounds"


def _line(run: "RunProgress") -> str:
    from appliance.federation import progress  # noqa: PLC0415 - other commands start without it

    line = f"{run.run_id}  {run.state:<8} round {run.finished_rounds} of {run.total_rounds}"
    if run.rounds:
        counted = [one.site for one in run.rounds[-1].sites if one.accepted]
        line += f", last with {', '.join(counted)}"
        line += "".join(_suspect(site, *counts) for site, counts in progress.suspects(run).items())
    if run.final:
        have = [one.site for one in run.final if one.accepted]
        line += f", final model at {', '.join(have) or 'no site'}"
    return f"{line}  ({run.reason})" if run.reason and run.state != "done" else line


def _plain(run: "RunProgress") -> dict[str, Any]:
    from appliance.federation import views  # noqa: PLC0415 - as above

    return dict(views.encode(run))
