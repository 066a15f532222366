"""``cloister viewer``: the viewer at ``/viewer``, brought from its npm package."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings

if TYPE_CHECKING:
    from appliance.node import ClinicalZone

ACTOR = "command"


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    group = typer.Typer(help="The viewer (OHIF) at /viewer.", no_args_is_help=True)
    group.command("install")(install)
    group.command("status")(status)
    group.command("remove")(remove)
    app.add_typer(group, name="viewer")


def install(
    config: ConfigOption,
    *,
    source: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="The package's file (.tgz), without npm."),
    ] = None,
) -> None:
    """Fetch the viewer with npm, or take its file, and put it into the data folder once its digest fits."""
    from appliance import viewer  # noqa: PLC0415 - other commands start without it

    zone = _zone(config)
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        archive = source or viewer.download(viewer.OHIF, Path(folder))
        done = viewer.install(zone.root, archive, viewer.OHIF)
    _note(zone, "viewer.installed", {"manifest_sha256": done.sha256, "files": len(done.files)})
    typer.echo(f"{viewer.OHIF.package} {done.version}: installed at {viewer.ADDRESS}")


def status(
    config: ConfigOption, *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say whether the viewer is installed and every file of it is as it was; exit code 1 if not."""
    from appliance import viewer  # noqa: PLC0415 - as above

    root = _zone(config).root
    found = viewer.installed(root, viewer.OHIF)
    damaged = [] if found is None else viewer.damaged(found)
    if as_json:
        content = {
            "package": viewer.OHIF.package,
            "version": viewer.OHIF.version,
            "installed": found is not None,
            "damaged": damaged,
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        other = "another release is installed: install again" if viewer.exists(root) else "not installed"
        state = other if found is None else "installed"
        typer.echo(f"{viewer.OHIF.package} {viewer.OHIF.version}: {state}")
        for name in damaged:
            typer.echo(f"damaged: {name}", err=True)
    if found is None or damaged:
        raise typer.Exit(WORK_FAILED)


def remove(config: ConfigOption) -> None:
    """Remove the viewer."""
    from appliance import viewer  # noqa: PLC0415 - as above

    zone = _zone(config)
    if not viewer.remove(zone.root):
        typer.echo("not installed")
        return
    _note(zone, "viewer.removed", {})
    typer.echo("removed")


def _note(zone: ClinicalZone, kind: str, body: dict[str, str | int]) -> None:
    from appliance.db.engine import writing  # noqa: PLC0415 - as above

    with writing(zone.engine) as session:
        zone.ledger.append(session, kind=kind, subject_id="viewer", body=body, actor=ACTOR)


def _zone(config: Path) -> ClinicalZone:
    from appliance import node  # noqa: PLC0415 - as above

    return node.open_clinical(read_settings(config))
