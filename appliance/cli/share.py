"""``cloister share``: de-identified studies go to another site, on the record of the whole federation."""

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings

if TYPE_CHECKING:
    from appliance.consortium.sharing import Sharing
    from appliance.db.research import StudyShare

_ShareId = Annotated[str, typer.Argument(help="Id of the share, as list prints it.")]
_AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="De-identified studies shared with another site; every step stands in the consortium's ledger.",
        no_args_is_help=True,
    )
    group.command("list")(list_all)
    group.command("give")(give)
    group.command("receive")(receive)
    group.command("withdraw")(withdraw)
    group.command("erase")(erase)
    group.command("announce")(announce)
    app.add_typer(group, name="share")


def list_all(config: ConfigOption, as_json: _AsJSON = False) -> None:
    """List what was given and received, as this site knows it; announce asks the coordinator."""
    from appliance.consortium.sharing import shares  # noqa: PLC0415 - other commands start without

    sharing = _open(config)
    found = [_shown(sharing, row) for row in shares(sharing.speaker)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for one in found:
        typer.echo(_line(one))
    if not found:
        typer.echo("nothing was shared")


def give(  # noqa: PLR0913, PLR0917 - one parameter an option
    config: ConfigOption,
    output: Annotated[Path, typer.Argument(help="File to write; the receiver alone can open it.")],
    to: Annotated[str, typer.Option("--to", help="The receiving site.")],
    ethics: Annotated[str, typer.Option("--ethics", help="Number of the ethics committee's approval.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What the studies are shared for, in words.")],
    study: Annotated[
        list[str] | None, typer.Option("--study", help="A study of the research zone, by its UID there.")
    ] = None,
    subject: Annotated[list[str] | None, typer.Option("--subject", help="A subject, by pseudonym.")] = None,
    label: Annotated[str, typer.Option("--label", help="All studies that bear this label.")] = "",
    as_json: _AsJSON = False,
) -> None:
    """Write de-identified studies as a file for one other site, and say so to all sites."""
    from appliance.consortium.selection import Wanted, choose  # noqa: PLC0415 - other commands start without
    from appliance.consortium.sharing import Terms  # noqa: PLC0415 - as above

    sharing = _open(config)
    chosen = choose(sharing.speaker.zone, Wanted(frozenset(study or ()), frozenset(subject or ()), label))
    row = sharing.give(chosen, Terms(to, ethics, purpose), output, _actor())
    if chosen.opted_out:
        typer.echo(f"{chosen.opted_out} subjects opted out and were left out", err=True)
    _print(sharing, row, as_json=as_json)


def receive(
    config: ConfigOption,
    path: Annotated[Path, typer.Argument(help="File that another site gave.")],
    as_json: _AsJSON = False,
) -> None:
    """Open a file that was given to this site; its studies lie apart from the research storage."""
    sharing = _open(config)
    row = sharing.receive(path, _actor())
    _print(sharing, row, as_json=as_json)


def withdraw(share: _ShareId, config: ConfigOption, as_json: _AsJSON = False) -> None:
    """Ask the receiver, on the record, to erase what this site gave."""
    sharing = _open(config)
    _print(sharing, sharing.withdraw(share, _actor()), as_json=as_json)


def erase(share: _ShareId, config: ConfigOption, as_json: _AsJSON = False) -> None:
    """Erase what this site received, and say so."""
    sharing = _open(config)
    _print(sharing, sharing.erase(share, _actor()), as_json=as_json)


def announce(config: ConfigOption) -> None:
    """Say the steps that the coordinator does not know yet, and learn what other sites said."""
    sharing = _open(config)
    rows = sharing.announce()
    for row in rows:
        typer.echo(_line(_shown(sharing, row)))
    if any(row.pending is not None for row in rows):
        raise typer.Exit(WORK_FAILED)


def _open(config: Path) -> "Sharing":
    from appliance import node  # noqa: PLC0415 - other commands start without
    from appliance.consortium.sharing import Sharing  # noqa: PLC0415 - as above
    from appliance.consortium.speaking import Speaker  # noqa: PLC0415 - as above

    settings = read_settings(config)
    if settings.federation.workspace is None:
        typer.echo("this site has not joined a federation; run: cloister join CODE", err=True)
        raise typer.Exit(WORK_FAILED)
    return Sharing(Speaker(node.open_research(settings), settings.federation.workspace))


def _shown(sharing: "Sharing", row: "StudyShare") -> dict[str, Any]:
    from appliance.consortium import shown  # noqa: PLC0415 - other commands start without
    from appliance.consortium.selection import still_here  # noqa: PLC0415 - as above
    from appliance.db.engine import reading  # noqa: PLC0415 - as above
    from appliance.federation import views  # noqa: PLC0415 - as above

    zone = sharing.speaker.zone
    with reading(zone.engine) as session:
        one: dict[str, Any] = views.encode(shown.share(zone, row, still_here(session)))
    return one


def _line(one: dict[str, Any]) -> str:
    text = (
        f"{one['id']}  {one['giver']} -> {one['receiver']}  {one['step']}: {one['studies']} studies of "
        f"{one['subjects']} subjects, {one['instances']} instances, {one['ethics_number']}"
    )
    if one["pending"]:
        text += f"\n    {one['pending']} is not in the ledger yet; run: cloister share announce"
    if one["no_longer_here"] and one["step"] in {"given", "received"}:
        text += (
            f"\n    {one['no_longer_here']} of these instances are gone from this site, or of people who"
            f" opted out; to have them erased: cloister share withdraw {one['id']}"
        )
    if one["folder"]:
        text += f"\n    in {one['folder']}"
        if one["step"] == "withdrawn":
            text += f"\n    the giver withdrew it; run: cloister share erase {one['id']}"
    return text


def _print(sharing: "Sharing", row: "StudyShare", *, as_json: bool) -> None:
    one = _shown(sharing, row)
    typer.echo(json.dumps(one, indent=2) if as_json else _line(one))


def _actor() -> str:
    return f"cli:{getpass.getuser()}"
