"""``cloister conformance``: the DICOM Conformance Statement of this version."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("conformance")(conformance)


def conformance(
    output: Annotated[Path | None, typer.Option("--output", help="Write to this file.")] = None,
) -> None:
    """Print the DICOM Conformance Statement (PS3.2), made from the code of this version."""
    from appliance.conformance import statement  # noqa: PLC0415 - the whole product

    text = statement()
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"{output}: written")
