"""``cloister source``: who sends and what, and who fell silent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from appliance.sources import SourceRow

ACTOR = "command"
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    source = typer.Typer(
        help="What peers and the scanners behind them sent, and who fell silent.", no_args_is_help=True
    )
    source.command("list")(list_all)
    source.command("show")(show)
    source.command("acknowledge")(acknowledge)
    app.add_typer(source, name="source")


def list_all(config: ConfigOption, *, as_json: JSONOption = False) -> None:
    """List sources, with what they sent in the last seven days, and destinations."""
    from appliance import sources  # noqa: PLC0415 - other commands need no database
    from appliance.db.base import now  # noqa: PLC0415
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.node import open_clinical  # noqa: PLC0415

    with reading(open_clinical(read_settings(config)).engine) as session:
        found = sources.overview(session, now())
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str, indent=2))
        return
    for row in found.sources:
        typer.echo(_line(row))
    for row in found.destinations:
        typer.echo(f"to {_line(row)}")
    for alarm in found.alarms:
        seen = f"acknowledged by {alarm.acknowledged_by}" if alarm.acknowledged_by else "not acknowledged"
        name = " ".join(filter(None, (alarm.ae_title, alarm.station_name)))
        typer.echo(f"SILENT {name} since {alarm.last_at:%Y-%m-%d %H:%M} UTC, {seen} (alarm {alarm.id})")
    if not (found.sources or found.destinations):
        typer.echo("nothing was sent yet")


def show(
    config: ConfigOption,
    ae_title: Annotated[str, typer.Argument(help="AE title of the source.")],
    station: Annotated[str, typer.Option("--station", help="Station name of a scanner behind it.")] = "",
    *,
    as_json: JSONOption = False,
) -> None:
    """Show what is known of one source: its habits by hour of the week, and when it would be missed."""
    from appliance import sources  # noqa: PLC0415
    from appliance.db.base import now  # noqa: PLC0415
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.habits import Week  # noqa: PLC0415
    from appliance.node import open_clinical  # noqa: PLC0415
    from appliance.silence import Source  # noqa: PLC0415

    settings = read_settings(config)
    week = Week(frozenset(settings.monitoring.holidays))
    with reading(open_clinical(settings).engine) as session:
        found = sources.detail(session, Source(ae_title, station), now(), week)
    if found is None:
        typer.echo("no such source; `cloister source list` names them", err=True)
        raise typer.Exit(WRONG_USE)
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str, indent=2))
        return
    typer.echo(_line(found.row))
    typer.echo(f"known for {found.weeks:.1f} weeks, sends in {found.hours_a_week:.0f} hours a week")
    if found.silent_from is not None:
        typer.echo(f"missed from {found.silent_from:%Y-%m-%d %H:%M} UTC")
    for day, name in enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")):
        hours = found.profile[24 * day : 24 * day + 24]
        typer.echo(f"{name} " + " ".join(f"{value:5.0f}" if value else "    ." for value in hours))


def acknowledge(
    config: ConfigOption, alarm_id: Annotated[str, typer.Argument(help="Of the alarm, as listed.")]
) -> None:
    """Note that somebody has seen an alarm."""
    from appliance import alarms  # noqa: PLC0415
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.node import open_clinical  # noqa: PLC0415

    zone = open_clinical(read_settings(config))
    try:
        with writing(zone.engine) as session:
            alarms.acknowledge(session, zone.ledger, alarm_id, actor=ACTOR)
    except alarms.AlarmError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    typer.echo("acknowledged")


def _line(row: SourceRow) -> str:
    name = f"{row.ae_title:<16} {row.station_name:<16}"
    last = f"{row.last_at:%Y-%m-%d %H:%M} UTC" if row.last_at else "never"
    counts = (
        f"{row.today.instances} today, {row.week.instances} in 7 days ({row.week.size_bytes / 1e6:.1f} MB)"
    )
    errors = f", {row.week.failures} failed, {row.week.rejected} rejected"
    state = f"{row.state:<12}" if row.state else ""
    return f"{name} {state} last {last}, {counts}{'' if row.station_name else errors}"
