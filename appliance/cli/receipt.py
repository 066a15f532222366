"""``cloister receipt``: what left the building in a round, told and checked."""

import dataclasses
import json
from typing import Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings

_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Signed receipts of all that left the building.", no_args_is_help=True)
    group.command("show")(show)
    group.command("verify")(verify)
    app.add_typer(group, name="receipt")


def show(
    receipt: Annotated[str, typer.Argument(help="Row id of the round or receipt, or 8 digits of its hash.")],
    config: ConfigOption,
    as_json: _AsJSON = False,
) -> None:
    """Tell what left in one round: tensors, sizes, norms, what privacy cost, who approved."""
    from appliance import node  # noqa: PLC0415 - other commands start without it
    from appliance.db.engine import reading  # noqa: PLC0415 - as above
    from appliance.federation import receipts  # noqa: PLC0415 - as above

    zone = node.open_research(read_settings(config))
    with reading(zone.engine) as session:
        row = receipts.find(session, receipt)
    if as_json:
        signed = {"body": row.body, "body_sha256": row.body_sha256, "signature": row.signature}
        typer.echo(json.dumps(signed, indent=2))
        return
    typer.echo("\n".join(receipts.lines(row.body)))
    typer.echo(f"receipt {row.body_sha256}, signature {row.signature}")


def verify(config: ConfigOption, as_json: _AsJSON = False) -> None:
    """Check every receipt's signature and its place in the ledger; exit 1 when one is not genuine."""
    from appliance import node  # noqa: PLC0415 - other commands start without it
    from appliance.db.engine import reading  # noqa: PLC0415 - as above
    from appliance.federation import receipts  # noqa: PLC0415 - as above

    zone = node.open_research(read_settings(config))
    with reading(zone.engine) as session:
        checked = receipts.verify(session, zone.keys.signing.public_key())
    wrong = [one for one in checked if one.problem]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in checked], indent=2))
    else:
        typer.echo(f"{len(checked)} receipts, {len(checked) - len(wrong)} genuine")
        for one in wrong:
            typer.echo(f"  round {one.round_id}: {one.problem}")
    if wrong:
        raise typer.Exit(WORK_FAILED)
