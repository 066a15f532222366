"""``cloister study``: what was received, and what a person can decide of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

ACTOR = "command"
StudyArgument = Annotated[str, typer.Argument(help="Row id of the study, or how it begins.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StateOption = Annotated[
    str, typer.Option("--state", help="Only studies that are receiving, assembled, quarantined or discarded.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at most.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    study = typer.Typer(help="What was received, without identities.", no_args_is_help=True)
    study.command("list")(list_all)
    study.command("show")(show)
    study.command("assemble")(assemble)
    study.command("route")(route)
    study.command("keep")(keep)
    study.command("take")(take)
    study.command("hold")(hold)
    study.command("release")(release)
    app.add_typer(study, name="study")


def list_all(
    config: ConfigOption, *, state: StateOption = "", limit: LimitOption = 50, as_json: JSONOption = False
) -> None:
    """List the studies that were received last."""
    from appliance.studies import find_studies  # noqa: PLC0415 - other commands need no database

    rows = find_studies(_zone(config), state=state, limit=limit)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(
            f"{row['id']}  {row['state']:<11}  {row['modalities']:<8}  {row['instances']:>5} instances"
            f"  revision {row['revision']}  from {row['calling_ae_title']}  last {row['last_received_at']}"
        )


def show(config: ConfigOption, study: StudyArgument, *, as_json: JSONOption = False) -> None:
    """Show where a study stands, and why."""
    from appliance.studies import describe  # noqa: PLC0415

    zone = _zone(config)
    described = describe(zone, _find(zone, study))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    _print(described)


def assemble(config: ConfigOption, study: StudyArgument) -> None:
    """Assemble a study without waiting for more of it, as soon as what was received before is filed."""
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.intake import mark_complete  # noqa: PLC0415

    zone = _zone(config)
    study_id = _find(zone, study)
    with writing(zone.engine) as session:
        waits = mark_complete(session, zone.ledger, study_id, ACTOR)
    if not waits:
        typer.echo(f"{study_id}: is assembled already", err=True)
        raise typer.Exit(WRONG_USE)
    typer.echo(f"{study_id}: is assembled in a moment")


def route(config: ConfigOption, study: StudyArgument) -> None:
    """Apply today's rules again to an assembled study; what it got already is not done twice."""
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.routing import RuleError, apply_again  # noqa: PLC0415

    zone = _zone(config)
    study_id = _find(zone, study)
    try:
        with writing(zone.engine) as session:
            outcome, deliveries = apply_again(zone, session, study_id, ACTOR)
    except RuleError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    for said in outcome.explanation:
        typer.echo(said.text)
    typer.echo(f"{deliveries} new deliveries")


def keep(config: ConfigOption, study: StudyArgument) -> None:
    """Where quarantine says otherwise whose study it is: keep what is stored, discard what says otherwise."""
    _settle(config, study, take=False)


def take(config: ConfigOption, study: StudyArgument) -> None:
    """Decide the other way: delete what is stored, with its results, and file what waits in quarantine."""
    _settle(config, study, take=True)


def _settle(config: Path, beginning: str, *, take: bool) -> None:
    from appliance import disputes  # noqa: PLC0415
    from appliance.quarantine import QuarantineError  # noqa: PLC0415

    zone = _zone(config)
    study_id = _find(zone, beginning)
    decide = disputes.take_quarantined if take else disputes.keep_stored
    try:
        number = decide(zone, study_id, actor=ACTOR)
    except QuarantineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    typer.echo(f"{study_id}: {number} instances {'will be filed instead' if take else 'discarded'}")


def hold(config: ConfigOption, study: StudyArgument) -> None:
    """Keep a study: no retention rule deletes it."""
    _hold(config, study, on=True)


def release(config: ConfigOption, study: StudyArgument) -> None:
    """End the hold of a study: retention rules apply to it again."""
    _hold(config, study, on=False)


def _hold(config: Path, beginning: str, *, on: bool) -> None:
    from appliance import retention_rules  # noqa: PLC0415
    from appliance.db.engine import writing  # noqa: PLC0415

    zone = _zone(config)
    study_id = _find(zone, beginning)
    with writing(zone.engine) as session:
        retention_rules.hold(session, zone.ledger, study_id, on=on, actor=ACTOR)
    typer.echo(f"{study_id}: {'on hold' if on else 'released'}")


def _print(described: dict[str, Any]) -> None:
    revisions = described.pop("revisions")
    for name, value in described.items():
        typer.echo(f"{name:<18} {'' if value is None else value}")
    for revision in revisions:
        typer.echo(
            f"revision {revision['number']}: {revision['instances']} instances, {revision['assembled_at']}"
        )
        for line in revision["explanation"]:
            typer.echo(f"  {line}")


def _find(zone: ClinicalZone, beginning: str) -> str:
    from appliance.studies import StudyError, find_one  # noqa: PLC0415

    try:
        return find_one(zone, beginning)
    except StudyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))
