"""``cloister join`` and ``cloister leave``: this site's membership of a federation."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WORK_FAILED, WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.health import Check
    from appliance.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("join")(join)
    app.command("leave")(leave)


def join(
    config: ConfigOption,
    code: Annotated[
        str | None,
        typer.Argument(help="The code of the coordinator's people, as host:port/letters; - reads it."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether joining would work, and what is blocked.")
    ] = False,
    renew: Annotated[bool, typer.Option("--renew", help="Renew this site's certificate now.")] = False,
) -> None:
    """Join a federation with CODE; the keys are made here. Restart the node afterwards."""
    from appliance.federation import joining, preflight  # noqa: PLC0415 - other commands start without it

    settings = read_settings(config)
    if code == "-":
        code = sys.stdin.readline().strip()
    if renew:
        ends = joining.renew(_workspace(settings), settings.zone_root("research"))
        typer.echo(f"renewed: good until {ends:%Y-%m-%d}")
    elif check:
        _show(preflight.of_code(code) if code else preflight.of_site(_workspace(settings)))
    elif code is None:
        typer.echo("expected CODE, --check or --renew", err=True)
        raise typer.Exit(WRONG_USE)
    else:
        _join(code, config, settings)


def leave(config: ConfigOption) -> None:
    """Leave the federation: tell the coordinator, remove certificate and key, switch the federation off."""
    from appliance.federation import joining, workspaces  # noqa: PLC0415 - other commands start without it
    from appliance.federation.errors import FederationError  # noqa: PLC0415 - as above

    settings = read_settings(config)
    workspace, told = _workspace(settings), ""
    try:
        joining.leave(workspace, settings.zone_root("research"))
    except FederationError as error:
        told = str(error)
    joining.forget(workspace)
    if _may_write(config):
        workspaces.disable(config)
    else:
        typer.echo(
            f"{config}: not writable for this user; let an administrator set federation.enabled = false"
        )
    typer.echo("left: certificate and key are removed. Restart the node.")
    if told:
        typer.echo(
            f"The coordinator does not know it yet ({told}); ask its people to expel this site.", err=True
        )
        raise typer.Exit(WORK_FAILED)


def _join(code: str, config: Path, settings: "Settings") -> None:
    from appliance.federation import joining, workspaces  # noqa: PLC0415 - other commands start without it

    joined = joining.join(code, settings)
    if _may_write(config):
        workspaces.enable(config, joined.site, joined.workspace)
    else:
        typer.echo(f"{config}: not writable for this user; let an administrator write this into it:")
        typer.echo("\n".join(workspaces.section(joined.site, joined.workspace)))
    typer.echo(
        f"joined as {joined.site}, coordinator {joined.address}; certificate until {joined.ends_at:%Y-%m-%d}"
    )
    typer.echo("Restart the node. Nothing runs here before a person approves it: cloister protocol list")


def _workspace(settings: "Settings") -> Path:
    if settings.federation.workspace is None:
        typer.echo("this site has not joined a federation; run: cloister join CODE", err=True)
        raise typer.Exit(WORK_FAILED)
    return settings.federation.workspace


def _may_write(config: Path) -> bool:
    return os.access(config, os.W_OK) and os.access(config.parent, os.W_OK)


def _show(found: "Iterable[Check]") -> None:
    checks = list(found)
    for one in checks:
        mark = "look " if one.ok and one.warning else "well " if one.ok else "WRONG"
        typer.echo(f"{mark}  {one.name}: {one.detail}")
        if one.fix and (one.warning or not one.ok):
            typer.echo(f"       -> {one.fix}")
    if not all(one.ok for one in checks):
        raise typer.Exit(WORK_FAILED)
