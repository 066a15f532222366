"""``cloister delivery``: results on their way to their destinations."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.deliveries import DeliveryRow
    from appliance.node import ClinicalZone

ACTOR = "command"
DeliveryArgument = Annotated[str, typer.Argument(help="Id of the delivery; its beginning is enough.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    delivery = typer.Typer(help="Results on their way to their destinations.", no_args_is_help=True)
    delivery.command("list")(list_all)
    delivery.command("retry")(retry)
    delivery.command("withhold")(withhold)
    app.add_typer(delivery, name="delivery")


def list_all(
    config: ConfigOption,
    *,
    peer: Annotated[str, typer.Option("--peer", help="Only to this destination.")] = "",
    state: Annotated[str, typer.Option("--state", help="queued, delivered, withheld or dead.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")] = 50,
    as_json: JSONOption = False,
) -> None:
    """List deliveries: what needs a person first, then the newest."""
    from appliance import deliveries  # noqa: PLC0415 - other commands need no database
    from appliance.db.engine import reading  # noqa: PLC0415 - as above

    if state and state not in deliveries.STATES:
        typer.echo(f"--state: expected one of {', '.join(deliveries.STATES)}", err=True)
        raise typer.Exit(WRONG_USE)
    with reading(_zone(config).engine) as session:
        rows = deliveries.listed(session, peer, state, limit)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2, default=str))
        return
    for row in rows:
        typer.echo(_line(row))
    if not rows:
        typer.echo("no delivery")


def retry(config: ConfigOption, delivery: DeliveryArgument) -> None:
    """Try a delivery again now, with all its attempts."""
    from appliance import deliveries  # noqa: PLC0415 - as above

    zone = _zone(config)
    try:
        deliveries.retry(zone, deliveries.full_id(zone, delivery), actor=ACTOR)
    except deliveries.DeliveryError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    typer.echo("queued again")


def withhold(config: ConfigOption, delivery: DeliveryArgument) -> None:
    """Keep a result from a destination for good."""
    from appliance import deliveries  # noqa: PLC0415 - as above

    zone = _zone(config)
    try:
        deliveries.withhold(zone, deliveries.full_id(zone, delivery), actor=ACTOR)
    except deliveries.DeliveryError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    typer.echo("withheld")


def _line(row: DeliveryRow) -> str:
    parts = [row.id[:8], row.destination, row.kind, row.state]
    if row.proof:
        parts.append(row.proof)
    if row.attempts and row.state != "delivered":
        parts.append(f"{row.attempts} attempts")
    if row.next_try_at is not None:
        parts.append(f"next {row.next_try_at:%Y-%m-%d %H:%M:%S} UTC")
    line = "  ".join(parts)
    return f"{line}: {row.reason}" if row.reason else line


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415 - as above

    return open_clinical(read_settings(config))
