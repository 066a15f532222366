"""Passwords for commands: asked for at a terminal, or read from standard input."""

import sys
from typing import Annotated

import typer

from appliance.errors import ApplianceError

PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking.")
]


def ask_password(*, from_stdin: bool, confirm: bool = False) -> str:
    """Return a password; a new one is asked for twice with ``confirm``.

    Raises
    ------
    ApplianceError
        If there is no terminal to ask at.
    """
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise ApplianceError("no terminal to ask for the password; use --password-stdin")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm))
