"""``cloister query`` and ``cloister fetch``: what archives have, and pulling it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from appliance.cli import WORK_FAILED, WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.fetch_views import FetchRow
    from appliance.fetching import Manner
    from appliance.node import ClinicalZone
    from dicom_node.archive import Answers

ACTOR: Final = "command"
QUERIED: Final = "archive.queried"
PeerArgument = Annotated[str, typer.Argument(help="Name of the peer; it must be an archive.")]
KeysArgument = Annotated[list[str], typer.Argument(help="Keys to match, such as PatientID=4711.")]
FetchArgument = Annotated[str, typer.Argument(help="Id of the fetch; its beginning is enough.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MethodOption = Annotated[str, typer.Option("--method", help="move, get or web; chosen if not given.")]
HoursOption = Annotated[str, typer.Option("--hours", help="When to pull: 'mon-fri 20:00-06:00'; always.")]
PauseOption = Annotated[float, typer.Option("--pause", help="Seconds between two studies.")]
PerHourOption = Annotated[int, typer.Option("--per-hour", help="Studies in an hour at most; 0: no bound.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Start without a look at what was found.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("query")(query)
    fetch = typer.Typer(help="Pull studies from archives.", no_args_is_help=True)
    for name, command in (
        ("start", start),
        ("priors", priors),
        ("list", list_all),
        ("show", show),
        ("go", go),
        ("pause", pause),
        ("resume", resume),
        ("cancel", cancel),
    ):
        fetch.command(name)(command)
    app.add_typer(fetch, name="fetch")


def query(
    config: ConfigOption,
    peer: PeerArgument,
    keys: KeysArgument,
    *,
    level: Annotated[str, typer.Option("--level", help="study, series or instance.")] = "study",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Answers at most.")] = 100,
    as_json: JSONOption = False,
) -> None:
    """Ask an archive what it has, and print it."""
    zone, match = _zone(config), _match(keys)
    answers = _guarded(lambda: _ask(zone, peer, match, level, limit))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "complete": answers.complete,
                    "dropped": answers.dropped,
                    "found": [dict(found) for found in answers.found],
                },
                indent=2,
            )
        )
        return
    for found in answers.found:
        typer.echo("  ".join(f"{keyword}={value}" for keyword, value in found.items() if value))
    more = "" if answers.complete else f"; there are more than {limit}"
    dropped = f"; {answers.dropped} answers dropped that contradict the keys" if answers.dropped else ""
    typer.echo(f"{len(answers.found)} found{more}{dropped}", err=True)


def start(  # noqa: PLR0913 - one parameter an option
    config: ConfigOption,
    peer: PeerArgument,
    keys: KeysArgument,
    *,
    method: MethodOption = "",
    hours: HoursOption = "",
    pause_s: PauseOption = 0.0,
    per_hour: PerHourOption = 0,
    yes: YesOption = False,
    as_json: JSONOption = False,
) -> None:
    """Order the studies that match. They are listed first; `cloister fetch go` then pulls them."""
    from appliance import fetching  # noqa: PLC0415 - other commands need no database

    zone, match = _zone(config), _match(keys)
    manner = fetching.Manner(method, hours, pause_s, per_hour, yes)
    order = fetching.Order(peer, match, manner)
    _say(_guarded(lambda: fetching.order(zone, order, actor=ACTOR)), manner, as_json=as_json)


def priors(  # noqa: PLR0913 - one parameter an option
    config: ConfigOption,
    study: Annotated[str, typer.Argument(help="Row id of the stored study.")],
    peer: PeerArgument,
    *,
    modality: Annotated[list[str] | None, typer.Option("--modality", help="Only these; repeat.")] = None,
    years: Annotated[int, typer.Option("--years", help="Not older; 0: however old.")] = 0,
    most: Annotated[int, typer.Option("--most", help="The latest so many.")] = 5,
    method: MethodOption = "",
    yes: YesOption = False,
    as_json: JSONOption = False,
) -> None:
    """Order earlier studies of the patient of a stored study."""
    from appliance import fetching  # noqa: PLC0415 - as above

    zone, manner = _zone(config), fetching.Manner(method, at_once=yes)
    wanted = fetching.Priors(study, tuple(modality or ()), years, most)
    fetch_id = _guarded(lambda: fetching.order_priors(zone, wanted, peer, manner, actor=ACTOR))
    _say(fetch_id, manner, as_json=as_json)


def list_all(config: ConfigOption, *, as_json: JSONOption = False) -> None:
    """List the latest fetches."""
    from appliance import fetch_views  # noqa: PLC0415 - as above
    from appliance.db.engine import reading  # noqa: PLC0415 - as above

    with reading(_zone(config).engine) as session:
        rows = fetch_views.list_fetches(session, identity=False)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2, default=str))
        return
    for row in rows:
        typer.echo(_line(row))
    if not rows:
        typer.echo("no fetch yet")


def show(config: ConfigOption, fetch: FetchArgument, *, as_json: JSONOption = False) -> None:
    """Show a fetch and its studies, by row ids."""
    from appliance import fetch_views  # noqa: PLC0415 - as above
    from appliance.db.engine import reading  # noqa: PLC0415 - as above

    zone = _zone(config)
    fetch_id = _id(zone, fetch)
    with reading(zone.engine) as session:
        row = fetch_views.get_fetch(session, fetch_id, identity=False)
        studies = fetch_views.list_studies(session, fetch_id, limit=10_000)
    if row is None:
        raise typer.Exit(WORK_FAILED)
    if as_json:
        content = {**asdict(row), "list": [asdict(one) for one in studies]}
        typer.echo(json.dumps(content, indent=2, default=str))
        return
    typer.echo(_line(row))
    for one in studies:
        count = f"{one.received} of {one.expected if one.expected is not None else '?'}"
        said = f"  {one.reason}" if one.reason else ""
        typer.echo(f"  {one.state:7} {count:>12} instances  study {one.study_id or '-'}{said}")


def go(config: ConfigOption, fetch: FetchArgument) -> None:
    """Pull what was listed."""
    _act(config, fetch, "start")


def pause(config: ConfigOption, fetch: FetchArgument) -> None:
    """Stop pulling until it is resumed."""
    _act(config, fetch, "pause")


def resume(config: ConfigOption, fetch: FetchArgument) -> None:
    """Go on, and try again what did not come whole."""
    _act(config, fetch, "resume")


def cancel(config: ConfigOption, fetch: FetchArgument) -> None:
    """End it; what has come stays."""
    _act(config, fetch, "cancel")


def _ask(zone: ClinicalZone, name: str, match: dict[str, str], level: str, limit: int) -> Answers:
    from appliance import archives, fetching  # noqa: PLC0415 - as above
    from appliance.db.engine import writing  # noqa: PLC0415 - as above
    from appliance.peers import get_peer  # noqa: PLC0415 - as above
    from dicom_node.query import Query  # noqa: PLC0415 - as above

    asked = Query(fetching.level_of(level), match, limit=limit)
    with writing(zone.engine) as session:
        peer = get_peer(session, name)
        archive = archives.open_archive(zone, peer, next(iter(archives.methods_of(peer)), ""))
        body = {"level": asked.level.value.lower(), "keys": len(match)}
        zone.ledger.append(session, kind=QUERIED, subject_id=peer.id, body=body, actor=ACTOR)
    return archive.find(asked)


def _act(config: Path, fetch: str, name: str) -> None:
    from appliance import fetching  # noqa: PLC0415 - as above

    zone = _zone(config)
    fetch_id = _id(zone, fetch)
    _guarded(lambda: fetching.act(zone, fetch_id, name, actor=ACTOR))
    typer.echo(f"{fetch_id}: done")


def _id(zone: ClinicalZone, begin: str) -> str:
    from sqlalchemy import select  # noqa: PLC0415 - as above

    from appliance.db.engine import reading  # noqa: PLC0415 - as above
    from appliance.db.peers import Fetch  # noqa: PLC0415 - as above

    with reading(zone.engine) as session:
        ids = session.scalars(select(Fetch.id).where(Fetch.id.startswith(begin, autoescape=True)).limit(2))
        found = list(ids) if begin else []
    if len(found) != 1:
        typer.echo("fetch: expected the id of one, see cloister fetch list", err=True)
        raise typer.Exit(WRONG_USE)
    return found[0]


def _match(keys: list[str]) -> dict[str, str]:
    match: dict[str, str] = {}
    for key in keys:
        keyword, sign, value = key.partition("=")
        if not sign or not keyword.isalnum():
            typer.echo("keys: expected KEYWORD=VALUE, such as PatientID=4711", err=True)
            raise typer.Exit(WRONG_USE)
        match[keyword] = value
    return match


def _guarded(run: Callable[[], Any]) -> Any:
    """Do it; what was asked for wrongly is exit code 2, an archive that does not answer 1."""
    from appliance.archives import FetchError  # noqa: PLC0415 - as above
    from appliance.peers import PeerError  # noqa: PLC0415 - as above
    from dicom_node.archive import ArchiveError  # noqa: PLC0415 - as above
    from dicom_node.query import QueryError  # noqa: PLC0415 - as above

    try:
        return run()
    except (FetchError, PeerError, QueryError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    except ArchiveError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WORK_FAILED) from error


def _say(fetch_id: str, manner: Manner, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"id": fetch_id}))
        return
    then = "and pulls what it finds" if manner.at_once else f"then: cloister fetch go {fetch_id[:8]}"
    typer.echo(f"{fetch_id}: the node asks the archive, {then}")


def _line(row: FetchRow) -> str:
    kind = "priors" if row.priors else ", ".join(row.keys)
    counts = f"{row.done} of {row.studies} studies, {row.received} instances"
    failed = f", {row.failed} failed" if row.failed else ""
    said = f"  ({row.reason})" if row.reason else ""
    return f"{row.id[:8]}  {row.state:9}  {row.peer}: {kind}  {counts}{failed}{said}"


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415 - as above

    return open_clinical(read_settings(config))
