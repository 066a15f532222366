"""``cloister retention``: when received studies are deleted."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.node import ClinicalZone

ACTOR = "command"
NameArgument = Annotated[str, typer.Argument(help="Name of the rule.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    retention = typer.Typer(
        help="When received studies are deleted: delivered, past their time, not on hold.",
        no_args_is_help=True,
    )
    retention.command("list")(list_all)
    retention.command("add")(add)
    retention.command("enable")(enable)
    retention.command("disable")(disable)
    retention.command("remove")(remove)
    retention.command("run")(run)
    app.add_typer(retention, name="retention")


def list_all(config: ConfigOption, *, as_json: JSONOption = False) -> None:
    """List all rules; without any, nothing is deleted."""
    from appliance import conditions, retention_rules  # noqa: PLC0415 - other commands need no database
    from appliance.db.engine import reading  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows: list[dict[str, Any]] = [
            {
                "name": rule.name,
                "enabled": rule.enabled,
                "condition": rule.condition,
                "keep_days": rule.keep_days,
            }
            for rule in retention_rules.list_rules(session)
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = "" if row["enabled"] else "  (disabled)"
        typer.echo(f"{row['name']}{state}: {row['keep_days']} days, {conditions.describe(row['condition'])}")
    if not rows:
        typer.echo("no rule: nothing is deleted")


def add(
    config: ConfigOption,
    name: NameArgument,
    *,
    keep_days: Annotated[int, typer.Option("--keep-days", help="Days after the last instance came.")],
    condition: Annotated[str, typer.Option("--condition", help="JSON, as of a rule (docs/rules.md).")] = "{}",
) -> None:
    """Add a rule. Of several that match a study, the longest time counts."""
    from appliance.retention_rules import add_rule  # noqa: PLC0415

    try:
        parsed = json.loads(condition)
    except (ValueError, RecursionError) as error:
        typer.echo("--condition: expected JSON", err=True)
        raise typer.Exit(WRONG_USE) from error
    _write(config, lambda zone, session: add_rule(session, zone.ledger, name, parsed, keep_days, actor=ACTOR))
    typer.echo(f"{name}: added")


def enable(config: ConfigOption, name: NameArgument) -> None:
    """Apply a rule."""
    _switch(config, name, enabled=True)


def disable(config: ConfigOption, name: NameArgument) -> None:
    """Keep a rule without applying it."""
    _switch(config, name, enabled=False)


def remove(config: ConfigOption, name: NameArgument) -> None:
    """Remove a rule."""
    from appliance.retention_rules import remove_rule  # noqa: PLC0415

    _write(config, lambda zone, session: remove_rule(session, zone.ledger, name, actor=ACTOR))
    typer.echo(f"{name}: removed")


def run(
    config: ConfigOption,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: JSONOption = False,
) -> None:
    """Delete now what is due; the node does so itself every hour."""
    from appliance import retention  # noqa: PLC0415
    from appliance.db.base import now  # noqa: PLC0415

    zone = _zone(config)
    if not dry_run:
        studies = retention.run(zone, now())
        typer.echo(json.dumps({"studies": studies}) if as_json else f"deleted {studies} studies")
        return
    found = retention.preview(zone, now(), within_s=float("inf"))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    gigabytes = found.size_bytes / 1e9
    typer.echo(f"would delete {found.studies} studies, {found.instances} instances, {gigabytes:.3f} GB")


def _switch(config: Path, name: str, *, enabled: bool) -> None:
    from appliance.retention_rules import switch_rule  # noqa: PLC0415

    _write(
        config, lambda zone, session: switch_rule(session, zone.ledger, name, enabled=enabled, actor=ACTOR)
    )
    typer.echo(f"{name}: {'enabled' if enabled else 'disabled'}")


def _write(config: Path, change: Callable[[ClinicalZone, Any], object]) -> None:
    from appliance.conditions import RuleError  # noqa: PLC0415
    from appliance.db.engine import writing  # noqa: PLC0415

    zone = _zone(config)
    try:
        with writing(zone.engine) as session:
            change(zone, session)
    except RuleError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))
