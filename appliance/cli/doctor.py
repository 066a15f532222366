"""``cloister doctor``: check everything, say what is wrong and the fix."""

import dataclasses
import json
from typing import Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    config: ConfigOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Check the node; exit 0 when all is well, 1 when something is wrong."""
    from appliance.doctor import examine  # noqa: PLC0415 - other commands start without it

    found = examine(read_settings(config))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        for check in found.checks:
            mark = "look " if check.ok and check.warning else "well " if check.ok else "WRONG"
            typer.echo(f"{mark}  {check.name}: {check.detail}")
            if (check.warning or not check.ok) and check.fix:
                typer.echo(f"       -> {check.fix}")
        wrong = sum(not check.ok for check in found.checks)
        typer.echo("all is well" if found.well else f"{wrong} of {len(found.checks)} checks failed")
    if not found.well:
        raise typer.Exit(WORK_FAILED)
