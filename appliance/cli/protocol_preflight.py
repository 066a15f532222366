"""``cloister protocol preflight``: look at the local cohort before approving a plan."""

import getpass
import json
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings

if TYPE_CHECKING:
    from appliance.federation.views import PreflightView
    from appliance.research_client import ResearchClient

POLL_S: Final = 0.5


def preflight(
    protocol: Annotated[
        str, typer.Argument(help="Row id, or the first 8 or more digits of the plan's hash.")
    ],
    config: ConfigOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for the result.", min=1)] = 3600.0,
) -> None:
    """Look at the cohort as the plan's task would use it, and measure a few steps; nothing leaves."""
    from appliance import research_client  # noqa: PLC0415 - other commands start without it
    from appliance.federation import preflight_words as words  # noqa: PLC0415 - as above

    client = research_client.connect(read_settings(config))
    client.preflight(protocol, f"cli:{getpass.getuser()}")
    found = _wait(client, protocol, timeout_s)
    if as_json:
        typer.echo(json.dumps(found.report or {"state": found.state, "reason": found.reason}, indent=2))
    elif found.report:
        for title, text in words.rows(found.report):
            typer.echo(f"{title.lower()}: {text}")
        for text in words.warnings(found.report):
            typer.echo(f"warning: {text}")
    else:
        typer.echo(f"no preflight: {found.state}, {found.reason}", err=True)
    if not found.report:
        raise typer.Exit(WORK_FAILED)


def _wait(client: "ResearchClient", protocol: str, timeout_s: float) -> "PreflightView":
    deadline = time.monotonic() + timeout_s
    while True:
        found = client.protocol(protocol).preflight
        if found is not None and (found.state in {"done", "dead"} or time.monotonic() > deadline):
            return found
        time.sleep(POLL_S)
