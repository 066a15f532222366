"""``cloister peer``: who may send, where results go, who was turned away, and whether it all works."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import DONE, WORK_FAILED, WRONG_USE, ConfigOption, peer_fields, read_settings
from appliance.cli.peer_fields import ACTOR, NameArgument, change_rows

if TYPE_CHECKING:
    from appliance.db.peers import Peer
    from appliance.node import ClinicalZone
    from appliance.peer_tests import PeerReport

JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    peer = typer.Typer(
        help="Who may send studies, where results go, and whether it works.", no_args_is_help=True
    )
    peer.command("add")(peer_fields.add)
    peer.command("change")(peer_fields.change)
    peer.command("show")(show)
    peer.command("list")(list_all)
    peer.command("test")(examine_one)
    peer.command("echo")(echo)
    peer.command("secret")(secret)
    peer.command("rejected")(rejected)
    peer.command("allow")(allow)
    peer.command("enable")(enable)
    peer.command("disable")(disable)
    peer.command("remove")(remove)
    app.add_typer(peer, name="peer")


def show(config: ConfigOption, name: NameArgument, as_json: JSONOption = False) -> None:
    """Show all fields of a peer."""
    row = _row(_read(_zone(config), name))
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    for field, value in row.items():
        typer.echo(f"{field:<26} {_plain(value)}")


def list_all(config: ConfigOption, as_json: JSONOption = False) -> None:
    """List all peers."""
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import list_peers  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows = [_row(peer) for peer in list_peers(session)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    words = {
        "may_send": "sends",
        "may_query": "queries",
        "is_destination": "receives",
        "is_archive": "archive",
    }
    for row in rows:
        uses = [word for field, word in words.items() if row[field]] + (["TLS"] if row["tls"] else [])
        state = "" if row["enabled"] else "  (disabled)"
        address = row["url"] or (f"{row['host']}:{row['port']}" if row["port"] else row["host"])
        seen = f"  seen {row['last_seen_at']}" if row["last_seen_at"] else ""
        typer.echo(f"{row['name']:<24} {row['ae_title']:<16} {address:<32} {', '.join(uses)}{state}{seen}")


def examine_one(
    config: ConfigOption,
    name: NameArgument,
    store: Annotated[
        bool, typer.Option("--store", help="Send one real instance, marked CONNECTION^TEST.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, max=60, help="Seconds for a step.")] = 10,
    as_json: JSONOption = False,
) -> None:
    """Test every way in which a peer and this node are to talk; say what fails and what to change."""
    from appliance.peer_tests import PeerTestError, examine  # noqa: PLC0415
    from appliance.peers import PeerError  # noqa: PLC0415

    try:
        report = examine(_zone(config), name, store=store, actor=ACTOR, step_timeout_s=timeout_s)
    except (PeerError, PeerTestError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    _print_report(name, report, as_json=as_json)
    raise typer.Exit(DONE if report.ok else WORK_FAILED)


def _print_report(name: str, report: PeerReport, *, as_json: bool) -> None:
    from appliance.peer_tests import TITLES, steps_as_rows  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps({"ok": report.ok, "steps": steps_as_rows(report)}, indent=2))
        return
    signs = {"ok": "ok     ", "warning": "look   ", "failed": "FAILED "}
    for step in report.steps:
        typer.echo(f"{signs[step.state]} {TITLES.get(step.name, step.name)}: {step.seen}")
        for advice in step.advice:
            typer.echo(f"          {advice.side}: {advice.text}")
    typer.echo(f"{name}: {report.summary}")


def echo(
    config: ConfigOption,
    name: NameArgument,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 10,
    as_json: JSONOption = False,
) -> None:
    """Ask a peer whether it is there (C-ECHO)."""
    from appliance.peers import destination_of  # noqa: PLC0415
    from dicom_node import scu  # noqa: PLC0415

    zone = _zone(config)
    peer = _read(zone, name)
    if not peer.port:
        typer.echo(f"{name}: has no port; only a peer that we call can be asked", err=True)
        raise typer.Exit(WRONG_USE)
    dicom = zone.settings.dicom
    outcome = scu.echo(destination_of(peer, dicom, timeout_s), dicom.ae_title)
    if as_json:
        values = {"ok": outcome.ok, "reason": outcome.reason, "round_trip_s": round(outcome.round_trip_s, 4)}
        typer.echo(json.dumps(values))
    else:
        typer.echo(f"{name}: {outcome.reason} ({outcome.round_trip_s * 1000:.0f} ms)")
    raise typer.Exit(DONE if outcome.ok else WORK_FAILED)


def secret(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="Name of the secret, for --credential.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Read it from this file instead of standard input.")
    ] = None,
) -> None:
    """Store a secret of a DICOMweb peer, from standard input: a bearer token, or user:password."""
    from appliance import secrets  # noqa: PLC0415

    try:
        if file is not None:
            content = file.read_bytes()[: secrets.MAX_BYTES + 1]
        elif sys.stdin.isatty():
            content = typer.prompt("Secret", hide_input=True).encode()
        else:
            content = sys.stdin.buffer.read(secrets.MAX_BYTES + 1)
        secrets.write(_zone(config), name, content)
    except OSError as error:
        typer.echo(f"{file}: cannot be read ({error.strerror})", err=True)
        raise typer.Exit(WRONG_USE) from error
    except secrets.SecretError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    typer.echo(f"{name}: stored")


def rejected(config: ConfigOption, as_json: JSONOption = False) -> None:
    """List callers that were turned away."""
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import list_rejected  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows = [
            {
                "id": row.id,
                "calling_ae_title": row.calling_ae_title,
                "called_ae_title": row.called_ae_title,
                "address": row.address,
                "tls": row.tls,
                "certificate_sha256": row.certificate_sha256,
                "reason": row.reason,
                "count": row.count,
                "last_seen_at": row.last_seen_at.isoformat(timespec="seconds"),
            }
            for row in list_rejected(session)
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for item in rows:
        typer.echo(
            f"{item['id']}  {item['last_seen_at']}  {item['calling_ae_title']:<16} from {item['address']:<24}"
            f" to {item['called_ae_title']:<16} {item['reason']} ({item['count']} times)"
        )


def allow(
    config: ConfigOption,
    caller: Annotated[str, typer.Argument(help="Its id in the list (cloister peer rejected), or AE title.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new peer.")] = "",
) -> None:
    """Make a peer of a caller that was turned away; one that came with a certificate must show it again."""
    from appliance.peers import PeerError, allow_caller, list_rejected  # noqa: PLC0415

    named: list[str] = []

    def work(zone: ClinicalZone, session: Any) -> None:
        rows = [row for row in list_rejected(session) if caller in {row.id, row.calling_ae_title}]
        if len(rows) != 1:
            raise PeerError(f"expected one caller of this id or AE title, found {len(rows)}")
        peer = allow_caller(session, zone.ledger, caller_id=rows[0].id, name=name, actor=ACTOR)
        named.append(peer.name)

    change_rows(config, work)
    typer.echo(f"{named[0]}: may send")


def enable(config: ConfigOption, name: NameArgument) -> None:
    """Allow a peer again."""
    _set_enabled(config, name, enabled=True)


def disable(config: ConfigOption, name: NameArgument) -> None:
    """Refuse a peer without forgetting it."""
    _set_enabled(config, name, enabled=False)


def remove(config: ConfigOption, name: NameArgument) -> None:
    """Remove a peer that nothing was delivered to."""
    from appliance.peers import remove_peer  # noqa: PLC0415

    change_rows(config, lambda zone, session: remove_peer(session, zone.ledger, name=name, actor=ACTOR))
    typer.echo(f"{name}: removed")


def _set_enabled(config: Path, name: str, *, enabled: bool) -> None:
    from appliance.peers import set_enabled  # noqa: PLC0415

    change_rows(
        config,
        lambda zone, session: set_enabled(session, zone.ledger, name=name, enabled=enabled, actor=ACTOR),
    )
    typer.echo(f"{name}: {'enabled' if enabled else 'disabled'}")


def _read(zone: ClinicalZone, name: str) -> Peer:
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import PeerError, get_peer  # noqa: PLC0415

    try:
        with reading(zone.engine) as session:
            return get_peer(session, name)
    except PeerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))


def _row(peer: Peer) -> dict[str, Any]:
    from appliance import schedules  # noqa: PLC0415
    from appliance.peer_values import FIELDS  # noqa: PLC0415

    return {
        **{field: getattr(peer, field) for field in FIELDS},
        "schedule": schedules.text_of(peer.schedule),
        "enabled": peer.enabled,
        "last_seen_at": peer.last_seen_at.isoformat(timespec="seconds") if peer.last_seen_at else None,
    }


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else value
