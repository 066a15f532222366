"""``cloister bench``: run one of the benchmarks that come with the source."""

import json
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from appliance.cli import WORK_FAILED, WRONG_USE

_PACKAGE = "tests.benchmarks"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the benchmark; 'list' names them.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Run a benchmark: a module tests/benchmarks/bench_NAME.py with run() -> dict of figures.

    What run() takes is an option of its name: ``cloister bench federation --sizes 1,25 --rounds 5``.
    """
    names = _names()
    if name == "list":
        typer.echo("\n".join(names) or "none: benchmarks come with the source, run from its folder")
        return
    if name not in names:
        typer.echo(f"no benchmark of this name; expected one of: {', '.join(names) or 'none here'}", err=True)
        raise typer.Exit(WRONG_USE)
    run = import_module(f"{_PACKAGE}.bench_{name}").run
    figures: dict[str, Any] = run(**_options(run, context.args))
    text = json.dumps(figures, indent=2)
    if as_json is not None:
        as_json.write_text(text + "\n", encoding="utf-8")
    typer.echo(text)
    if figures.get("ok") is False:
        raise typer.Exit(WORK_FAILED)


def _options(run: Callable[..., Any], words: list[str]) -> dict[str, int | str]:
    """Return the values of options that a benchmark takes: whole numbers and texts."""
    known = {
        parameter.replace("_", "-"): (parameter, type(one.default))
        for parameter, one in signature(run).parameters.items()
        if type(one.default) in {int, str}
    }
    found: dict[str, int | str] = {}
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in zip_longest(rest[::2], rest[1::2]):
        parameter, kind = known.get(option.removeprefix("--"), ("", str))
        if not parameter or not option.startswith("--") or value is None:
            _refuse(known)
        try:
            found[parameter] = kind(value)
        except ValueError:
            _refuse(known)
    return found


def _refuse(known: Iterable[str]) -> NoReturn:
    options = ", ".join(f"--{name} VALUE" for name in known) or "none"
    typer.echo(f"wrong options for this benchmark; it takes: {options}", err=True)
    raise typer.Exit(WRONG_USE)


def _names() -> list[str]:
    """Return what there is beside the program's source, and make it importable."""
    root = Path(__file__).resolve().parents[2]
    folder = root.joinpath(*_PACKAGE.split("."))
    if not folder.is_dir():
        return []
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
