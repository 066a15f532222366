"""``cloister coordinator invite``, ``members``, ``withdraw``, ``expel``: who belongs to a federation."""

import json
from pathlib import Path
from typing import Annotated

import typer

_Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Site = Annotated[str, typer.Argument(help="Name of the site.")]


def register(group: typer.Typer) -> None:
    """Add the commands to those of the coordinator."""
    group.command("invite")(invite)
    group.command("withdraw")(withdraw)
    group.command("members")(members)
    group.command("expel")(expel)


def invite(
    folder: _Folder,
    site: Annotated[str, typer.Option(help="Name of the site that may join with the code.")],
    hours: Annotated[float, typer.Option(help="How long the code is good.")] = 24.0,
    as_json: _AsJSON = False,
) -> None:
    """Print a one-time code with which a site joins; an earlier code for it is withdrawn."""
    from appliance.federation import book, invitations, provision  # noqa: PLC0415 - other commands start without

    federation = provision.load(folder)
    opened, chain = book.open_book(federation), book.open_ledger(federation.root)
    code = invitations.invite(federation, opened.engine, chain, site, hours)
    if as_json:
        typer.echo(json.dumps({"site": site, "code": str(code), "hours": hours}, indent=2))
        return
    typer.echo(str(code))
    typer.echo(f"good once, within {hours:g} hours, for {site}; at the site: cloister join CODE", err=True)


def withdraw(folder: _Folder, site: _Site) -> None:
    """Withdraw a site's open codes."""
    from appliance.federation import book, invitations, provision  # noqa: PLC0415 - other commands start without

    federation = provision.load(folder)
    opened, chain = book.open_book(federation), book.open_ledger(federation.root)
    typer.echo(f"{site}: {invitations.withdraw(opened.engine, chain, site)} codes withdrawn")


def members(folder: _Folder, as_json: _AsJSON = False) -> None:
    """List members and open invitations."""
    from appliance.federation import book, invitations, provision  # noqa: PLC0415 - other commands start without
    from appliance.federation import members as table  # noqa: PLC0415 - as above

    engine = book.open_book(provision.load(folder)).engine
    found, invited = table.members(engine), invitations.open_invitations(engine)
    if as_json:
        content = {
            "members": [
                {
                    "site": one.name,
                    "state": one.state.value,
                    "signing_key": one.signing_key,
                    "certificate_ends_at": one.certificate_ends_at.isoformat(),
                    "joined_at": one.joined_at.isoformat(),
                    "left_at": one.left_at.isoformat() if one.left_at else None,
                }
                for one in found
            ],
            "invitations": [
                {"site": one.site, "expires_at": one.expires_at.isoformat(), "wrong": one.failed_attempts}
                for one in invited
            ],
        }
        typer.echo(json.dumps(content, indent=2))
        return
    for one in found:
        typer.echo(
            f"{one.name:<24} {one.state.value:<9} certificate until {one.certificate_ends_at:%Y-%m-%d}"
        )
    for open_one in invited:
        typer.echo(f"{open_one.site:<24} invited   until {open_one.expires_at:%Y-%m-%d %H:%M} UTC")
    if not found and not invited:
        typer.echo("no member yet; invite one with: cloister coordinator invite FOLDER --site NAME")


def expel(folder: _Folder, site: _Site) -> None:
    """Cut a site off at once; its certificate is refused from now on, runs go on without it."""
    from appliance.db.coordinator import MemberState  # noqa: PLC0415 - other commands start without it
    from appliance.federation import book, invitations, provision  # noqa: PLC0415 - as above
    from appliance.federation import members as table  # noqa: PLC0415 - as above

    federation = provision.load(folder)
    opened, chain = book.open_book(federation), book.open_ledger(federation.root)
    table.end(opened.engine, chain, site, MemberState.EXPELLED)
    invitations.withdraw(opened.engine, chain, site)
    typer.echo(f"{site}: expelled")
