"""``cloister budget``: what differential privacy may cost the people whose studies are here."""

import getpass
import json
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import ConfigOption, read_settings

if TYPE_CHECKING:
    from appliance.federation.views import BudgetView

_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The privacy budget of everybody in the research zone.", no_args_is_help=True)
    group.command("list")(list_all)
    group.command("set")(set_budget)
    app.add_typer(group, name="budget")


def list_all(config: ConfigOption, as_json: _AsJSON = False) -> None:
    """Say what is allowed, spent and left."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it

    _print(research_client.connect(read_settings(config)).budget(), as_json=as_json)


def set_budget(
    epsilon: Annotated[float, typer.Argument(min=0.0, help="Most that all runs together may cost.")],
    config: ConfigOption,
    delta: Annotated[float, typer.Option(help="At which delta; below one in the number of people.")] = 1e-5,
    as_json: _AsJSON = False,
) -> None:
    """Set the budget; from then on no plan without differential privacy runs here."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it

    client = research_client.connect(read_settings(config))
    _print(client.set_budget(epsilon, delta, f"cli:{getpass.getuser()}"), as_json=as_json)


def _print(view: "BudgetView", *, as_json: bool) -> None:
    from appliance.federation import views  # noqa: PLC0415 - as above

    if as_json:
        typer.echo(json.dumps(views.encode(view), indent=2))
    elif view.epsilon is None:
        typer.echo("no budget is set; plans with differential privacy are refused until: cloister budget set")
    else:
        typer.echo(
            f"everybody in the research zone: epsilon {view.spent:.4g} of {view.epsilon:g} spent, "
            f"{view.left:.4g} left, at delta {view.delta:g}; {view.rounds} rounds charged"
        )
