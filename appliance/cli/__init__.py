"""The ``cloister`` command. Each module of this package offers ``register(app)``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from appliance.errors import ApplianceError, SettingsError
from appliance.settings import Settings, load_settings

MODULES: Final = (
    "init",
    "up",
    "demo",
    "doctor",
    "deidentify",
    "evidence",
    "delivery",
    "infer",
    "simulate",
    "coordinator",
    "join",
    "protocol",
    "budget",
    "receipt",
    "share",
    "model",
    "labels",
    "peer",
    "source",
    "rule",
    "study",
    "fetch",
    "retention",
    "user",
    "viewer",
    "vault",
    "ledger",
    "conformance",
    "bench",
)

_ELSEWHERE: Final = {"query": "fetch", "leave": "join"}  # commands that another module registers

DONE: Final = 0
WORK_FAILED: Final = 1
WRONG_USE: Final = 2


def _default_config() -> Path:
    return Path(os.environ.get("CLOISTER_CONFIG", "cloister.toml"))


ConfigOption = Annotated[
    Path,
    typer.Option("--config", default_factory=_default_config, help="Configuration file. [$CLOISTER_CONFIG]"),
]


def read_settings(config: Path) -> Settings:
    """Read the configuration for a command; a wrong one ends it with exit code 2, naming every bad field."""
    try:
        return load_settings(config)
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def build(only: str | None = None) -> typer.Typer:
    """Build the command with all its subcommands.

    Parameters
    ----------
    only : str or None
        A subcommand that is enough, so that no other's module is loaded; an unknown name means all.
    """
    app = typer.Typer(
        name="cloister",
        help="Hospital edge appliance: DICOM in, de-identified training inside, results out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)
    home = _ELSEWHERE.get(only or "", only)
    for name in MODULES if home not in MODULES else [home]:
        full = f"{__name__}.{name}"
        if find_spec(full) is not None:
            import_module(full).register(app)
    return app


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 wrong use."""
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else None)()
    except SettingsError as error:
        typer.echo(str(error), err=True)
        sys.exit(WRONG_USE)
    except ApplianceError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(WORK_FAILED)


if __name__ == "__main__":
    main()
