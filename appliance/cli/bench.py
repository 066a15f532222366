"""``cloister bench``: run one of the benchmarks that come with the source."""

import json
import sys
from importlib import import_module
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
    """Return what there is beside the program's source, and make it importable."""
    root = Path(__file__).resolve().parents[2]
    folder = root.joinpath(*_PACKAGE.split("."))
    if not folder.is_dir():
        return []
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
