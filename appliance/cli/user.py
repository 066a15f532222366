"""``cloister user``: people who sign in to the panel."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings, user_token
from appliance.cli.passwords import PasswordStdin, ask_password

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="People who sign in to the panel.", no_args_is_help=True)
    group.command("add")(add)
    group.command("list")(list_all)
    group.command("disable")(disable)
    group.command("enable")(enable)
    group.command("password")(password)
    user_token.register(group)
    app.add_typer(group, name="user")


def add(
    name: Annotated[str, typer.Argument(help="Lower-case name for signing in.")],
    config: ConfigOption,
    role: Annotated[
        list[str] | None, typer.Option(help="operator, radiologist, privacy, gateway, admin.")
    ] = None,
    right: Annotated[list[str] | None, typer.Option(help="A single right; may be repeated.")] = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user."""
    from appliance.auth import ROLES, Right, users  # noqa: PLC0415 - other commands start without

    unknown = [item for item in role or [] if item not in ROLES]
    unknown += [item for item in right or [] if item not in set(Right)]
    if unknown or not (role or right):
        typer.echo(f"expected --role ({', '.join(ROLES)}) or --right ({', '.join(Right)})", err=True)
        raise typer.Exit(WRONG_USE)
    rights = {Right(item) for item in right or []}.union(*(ROLES[item] for item in role or []))
    secret = ask_password(from_stdin=password_stdin, confirm=True)
    with changing(config) as (zone, session):
        users.add_user(session, zone.ledger, name=name, password=secret, rights=rights)
    typer.echo(f"{name}: added")


def list_all(
    config: ConfigOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List all users."""
    from appliance import node  # noqa: PLC0415 - other commands start without it
    from appliance.auth import users  # noqa: PLC0415 - as above
    from appliance.db.engine import reading  # noqa: PLC0415 - as above

    with reading(node.open_clinical(read_settings(config)).engine) as session:
        found = users.list_users(session)
    if as_json:
        rows = [{"name": user.name, "enabled": user.enabled, "rights": list(user.rights)} for user in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    for user in found:
        typer.echo(f"{user.name}{'' if user.enabled else ' (disabled)'}: {', '.join(user.rights)}")


def disable(name: Annotated[str, typer.Argument()], config: ConfigOption) -> None:
    """Disable a user and end all sessions."""
    _set_enabled(name, config, enabled=False)


def enable(name: Annotated[str, typer.Argument()], config: ConfigOption) -> None:
    """Enable a user again."""
    _set_enabled(name, config, enabled=True)


def password(
    name: Annotated[str, typer.Argument()], config: ConfigOption, password_stdin: PasswordStdin = False
) -> None:
    """Give a user a new password and end all sessions."""
    from appliance.auth import users  # noqa: PLC0415 - other commands start without it

    secret = ask_password(from_stdin=password_stdin, confirm=True)
    with changing(config) as (zone, session):
        users.set_password(session, zone.ledger, users.find_user(session, name), password=secret)
    typer.echo(f"{name}: changed")


def _set_enabled(name: str, config: Path, *, enabled: bool) -> None:
    from appliance.auth import users  # noqa: PLC0415 - other commands start without it

    with changing(config) as (zone, session):
        users.set_enabled(session, zone.ledger, users.find_user(session, name), enabled=enabled)
    typer.echo(f"{name}: {'enabled' if enabled else 'disabled'}")


@contextmanager
def changing(config: Path) -> "Iterator[tuple[ClinicalZone, Session]]":
    """Give the clinical zone and a session in a writing transaction."""
    from appliance import node  # noqa: PLC0415 - other commands start without it
    from appliance.db.engine import writing  # noqa: PLC0415 - as above

    zone = node.open_clinical(read_settings(config))
    try:
        with writing(zone.engine) as session:
            yield zone, session
    finally:
        zone.engine.dispose()
