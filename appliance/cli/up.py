"""``cloister up``: run this node until a signal."""

from typing import Annotated, Literal

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("up")(up)


def up(
    config: ConfigOption,
    zone: Annotated[
        Literal["all", "clinical", "research"], typer.Option(help="Run only the processes of one zone.")
    ] = "all",
) -> None:
    """Run this node: make what is missing, start every process, keep it running; Ctrl-C ends all of them."""
    from appliance import forking, health, logs, node, supervisor  # noqa: PLC0415 - other commands start without

    settings = read_settings(config)
    logs.setup(settings.logging, "supervisor")
    only: Literal["clinical", "research"] | None = None if zone == "all" else zone
    if forking.run_in_child(lambda: node.create_node(settings, only), "create_node") != 0:
        raise typer.Exit(WORK_FAILED)
    forking.preload()
    supervisor.Supervisor(settings, health.processes(settings, only), forking.forker(config), only).run()
