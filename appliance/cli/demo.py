"""``cloister demo``: the whole story on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import WORK_FAILED, WRONG_USE


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End after the last stage; exit 0 only if all did their work.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was measured to this file.", dir_okay=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own DICOM studies, instead of drawn ones.", exists=True)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Their labels: patient_id,label,value (0 or 1).", exists=True)
    ] = None,
    allow_pooling: Annotated[
        bool,
        typer.Option("--allow-pooling", help="With --data: also train on all sites' data in one place."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn by chance.", min=0)] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="New folder for everything; a temporary one by default.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder afterwards.")] = False,
) -> None:
    """Three hospitals, a coordinator, a PACS and a workstation: from the first study to a result."""
    from appliance.demo import story  # noqa: PLC0415 - other commands start without
    from appliance.demo.screen import Screen  # noqa: PLC0415 - as above
    from appliance.demo.world import StageError  # noqa: PLC0415 - as above

    if (data is None) != (labels is None) or (allow_pooling and data is None):
        typer.echo("expected --data and --labels together; --allow-pooling belongs to them", err=True)
        raise typer.Exit(WRONG_USE)
    try:
        told = story.tell(
            screen=Screen(),
            seed=seed,
            once=once,
            keep=keep or folder is not None,
            folder=folder,
            data=data,
            labels=labels,
            allow_pooling=allow_pooling,
        )
    except StageError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    if json_file is not None:
        story.write_json(json_file, told.figures)
    if not told.ok:
        raise typer.Exit(WORK_FAILED)
