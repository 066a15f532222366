"""``cloister init``: make a configuration file and an empty node."""

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import WRONG_USE, read_settings

_TEMPLATE = """\
# Cloister's configuration; every value that is missing has a default.
name = "{name}"
data_root = "data"

[dicom]
ae_title = "{ae_title}"
host = "{host}"
port = {port}

[web]
host = "127.0.0.1"
port = {web_port}
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the node; made at need.")] = Path(),
    name: Annotated[str, typer.Option(help="Name of the node.")] = "node",
    ae_title: Annotated[str, typer.Option(help="AE title under which others send to it.")] = "CLOISTER",
    host: Annotated[str, typer.Option(help="Address that the DICOM listener binds.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the DICOM listener.")] = 11112,
    web_port: Annotated[int, typer.Option(help="Port of the panel.")] = 8443,
) -> None:
    """Write cloister.toml and make folders, keys and databases."""
    from appliance.node import create_node  # noqa: PLC0415 - other commands start without it

    path = folder / "cloister.toml"
    if path.exists():
        typer.echo(f"{path}: exists already; nothing was changed", err=True)
        raise typer.Exit(WRONG_USE)
    if '"' in name + ae_title + host or "\\" in name + ae_title + host:
        typer.echo("name, ae-title, host: expected no quotes and no backslashes", err=True)
        raise typer.Exit(WRONG_USE)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _TEMPLATE.format(name=name, ae_title=ae_title, host=host, port=port, web_port=web_port),
        encoding="utf-8",
    )
    try:
        settings = read_settings(path)
    except typer.Exit:
        path.unlink()
        raise
    create_node(settings)
    typer.echo(f"{path}: written; keys and databases are under {settings.data_root}")
    typer.echo(
        f"next: cloister user add NAME --role admin --config {path}, then: cloister up --config {path}"
    )
