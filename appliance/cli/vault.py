"""``cloister vault``: the sealed identities behind the pseudonyms."""

import sys

import typer

from appliance.cli import ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The sealed identities behind the pseudonyms.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("rotate")(rotate)
    app.add_typer(group, name="vault")


def rotate(config: ConfigOption) -> None:
    """Seal all identities with a new key and destroy the old one; repeat it when it was stopped."""
    from appliance import node, vault  # noqa: PLC0415 - other commands start without it

    zone = node.open_clinical(read_settings(config))
    with typer.progressbar(length=1, label="sealing", file=sys.stderr) as bar:

        def advance(done: int, of: int) -> None:
            bar.length = max(of, 1)
            bar.update(done - bar.pos)

        total = vault.rotate(zone, on_progress=advance)
    zone.engine.dispose()
    typer.echo(f"{total} entries are sealed with a new key; the old one is destroyed")
