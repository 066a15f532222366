"""``cloister ledger``: check the records of both zones."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from appliance.cli import WORK_FAILED, ConfigOption, consortium, read_settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The append-only record of every step.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("verify")(verify)
    consortium.register(group)
    app.add_typer(group, name="ledger")


def verify(
    config: ConfigOption,
    zone: Annotated[
        Literal["all", "clinical", "research"], typer.Option(help="Check one zone only.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    of_consortium: Annotated[
        bool, typer.Option("--consortium", help="Check the replica of the consortium's ledger.")
    ] = False,
    coordinator: consortium.CoordinatorOption = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="With --consortium: another site's exported replica.")
    ] = None,
) -> None:
    """Check every entry's place, link, content and signature; exit 1 when anything was tampered with."""
    if of_consortium or coordinator is not None or against:
        consortium.verify(config, coordinator, against or [], as_json=as_json)
        return
    from appliance import ledger, node  # noqa: PLC0415 - other commands start without

    settings = read_settings(config)
    reports: dict[str, ledger.Report] = {}
    if zone in {"all", "clinical"}:
        clinical = node.open_clinical(settings)
        key = clinical.keys.signing.public_key()
        reports["clinical"] = ledger.verify(clinical.engine, key, node.head_path(settings, "clinical"))
    if zone in {"all", "research"}:
        research = node.open_research(settings)
        key = research.keys.signing.public_key()
        reports["research"] = ledger.verify(research.engine, key, node.head_path(settings, "research"))
    if as_json:
        typer.echo(
            json.dumps({name: dataclasses.asdict(report) for name, report in reports.items()}, indent=2)
        )
    else:
        for name, report in reports.items():
            state = "intact" if report.ok else "NOT INTACT"
            typer.echo(f"{name}: {report.entries} entries, {state}, head {report.head_hash}")
            for problem in report.problems:
                typer.echo(f"  entry {problem.sequence}: {problem.message}")
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(WORK_FAILED)
