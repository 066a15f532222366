"""``cloister user token``: bearer tokens of programs that act for a user."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from datetime import datetime

_User = Annotated[str, typer.Argument(help="Name of the user that the token acts for.")]
_Name = Annotated[str, typer.Option("--name", help="Name of the token, such as viewer or pacs.")]
_DEFAULT = "view,view_identity"


def register(group: typer.Typer) -> None:
    """Add the commands below ``cloister user``."""
    tokens = typer.Typer(help="Bearer tokens of programs that act for a user.", no_args_is_help=True)
    tokens.command("create")(create)
    tokens.command("list")(list_all)
    tokens.command("revoke")(revoke)
    group.add_typer(tokens, name="token")


def create(
    user: _User,
    config: ConfigOption,
    name: _Name,
    rights: Annotated[str, typer.Option(help="Of the user's rights, separated by commas.")] = _DEFAULT,
    days: Annotated[
        int | None, typer.Option(help="Days until it expires; without it, until revoked.")
    ] = None,
) -> None:
    """Make a token and print it, once: it cannot be shown again."""
    from appliance.auth import Right, tokens, users  # noqa: PLC0415 - other commands start without
    from appliance.cli.user import changing  # noqa: PLC0415 - as above
    from appliance.db.base import now  # noqa: PLC0415 - as above

    wanted = [item.strip() for item in rights.split(",") if item.strip()]
    unknown = [item for item in wanted if item not in set(Right)]
    if unknown:
        typer.echo(f"unknown: {', '.join(unknown)}; rights: {', '.join(Right)}", err=True)
        raise typer.Exit(WRONG_USE)
    with changing(config) as (zone, session):
        secret = tokens.create(
            session,
            zone.ledger,
            users.find_user(session, user),
            name=name,
            granted=[Right(item) for item in wanted],
            days=days,
            at=now(),
        )
    typer.echo(secret)


def list_all(
    config: ConfigOption,
    user: Annotated[str | None, typer.Argument(help="Only this user's tokens.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tokens, never what they are."""
    from appliance import node  # noqa: PLC0415 - other commands start without it
    from appliance.auth import tokens, users  # noqa: PLC0415 - as above
    from appliance.db.engine import reading  # noqa: PLC0415 - as above

    with reading(node.open_clinical(read_settings(config)).engine) as session:
        chosen = [users.find_user(session, user)] if user else users.list_users(session)
        found = [(one.name, token) for one in chosen for token in tokens.of_user(session, one)]
    rows = [
        {
            "user": owner,
            "name": token.name,
            "rights": list(token.rights),
            "expires_at": _text(token.expires_at),
            "last_used_at": _text(token.last_used_at),
        }
        for owner, token in found
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        until = f"until {row['expires_at']}" if row["expires_at"] else "until revoked"
        used = f"last used {row['last_used_at']}" if row["last_used_at"] else "never used"
        typer.echo(f"{row['user']}/{row['name']}: {', '.join(row['rights'] or ())}; {until}; {used}")


def revoke(user: _User, config: ConfigOption, name: _Name) -> None:
    """Revoke a token; it is refused from the next request on."""
    from appliance.auth import tokens, users  # noqa: PLC0415 - other commands start without it
    from appliance.cli.user import changing  # noqa: PLC0415 - as above

    with changing(config) as (zone, session):
        tokens.revoke(session, zone.ledger, tokens.find(session, users.find_user(session, user), name))
    typer.echo(f"{user}/{name}: revoked")


def _text(at: "datetime | None") -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")
