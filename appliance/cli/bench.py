"""``cloister bench``: run one of the benchmarks that come with the source."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import WORK_FAILED, WRONG_USE

_PACKAGE = "tests.benchmarks"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark; 'list' names them.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Run a benchmark: a module tests/benchmarks/bench_NAME.py with run() -> dict of figures."""
    names = _names()
    if name == "list":
        typer.echo("\n".join(names) or "none: benchmarks come with the source, run from its folder")
        return
    if name not in names:
        typer.echo(f"no benchmark of this name; expected one of: {', '.join(names) or 'none here'}", err=True)
        raise typer.Exit(WRONG_USE)
    figures: dict[str, Any] = import_module(f"{_PACKAGE}.bench_{name}").run()
    text = json.dumps(figures, indent=2)
    if as_json is not None:
        as_json.write_text(text + "\n", encoding="utf-8")
    typer.echo(text)
    if figures.get("ok") is False:
        raise typer.Exit(WORK_FAILED)


def _names() -> list[str]:
    try:
        spec = find_spec(_PACKAGE)
    except ModuleNotFoundError:
        return []
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return sorted(
        path.stem.removeprefix("bench_") for folder in folders for path in Path(folder).glob("bench_*.py")
    )
