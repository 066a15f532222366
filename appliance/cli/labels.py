"""``cloister labels import``: labels from a CSV file with original identifiers, read in the clinical zone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(help="Labels of studies.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("import")(import_)
    app.add_typer(group, name="labels")


def import_(
    csv_file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The label file.")],
    config: ConfigOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Import labels; rows that cannot be used are listed by line. Exit code 1 when no row could be used."""
    from appliance.labelling import import_labels  # noqa: PLC0415 - the command's start stays light
    from appliance.node import open_clinical  # noqa: PLC0415 - see above
    from trainer.errors import LabelFileError  # noqa: PLC0415 - see above

    zone = open_clinical(read_settings(config))
    try:
        report = import_labels(zone, csv_file, "cli")
    except LabelFileError as error:
        typer.echo(f"{csv_file}: {error}", err=True)
        raise typer.Exit(WORK_FAILED) from error
    finally:
        zone.engine.dispose()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        for problem in report.problems:
            typer.echo(f"line {problem.line}: {problem.code}: {problem.message}")
        typer.echo(f"{report.accepted} accepted, {len(report.problems)} left out")
    if not report.accepted:
        raise typer.Exit(WORK_FAILED)
