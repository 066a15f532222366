"""``cloister join``: install a federation's startup kit in this node."""

import os
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("join")(join)


def join(
    kit: Annotated[Path, typer.Argument(help="The kit file that the coordinator's people handed over.")],
    config: ConfigOption,
) -> None:
    """Install KIT and turn the federation on in the configuration; restart the node afterwards."""
    from appliance.federation import kit as kits  # noqa: PLC0415 - other commands start without it

    settings = read_settings(config)
    checked = kits.read_kit(kit)
    workspace = kits.install(checked, settings)
    if os.access(config, os.W_OK) and os.access(config.parent, os.W_OK):
        kits.enable(config, checked, workspace)
    else:
        typer.echo(f"{config}: not writable for this user; let an administrator write this into it:")
        typer.echo("\n".join(kits.section(checked, workspace)))
    typer.echo(f"joined as {checked.site}, coordinator {checked.host}:{checked.port}")
    typer.echo("Restart the node. Nothing runs here before a person approves it: cloister protocol list")
