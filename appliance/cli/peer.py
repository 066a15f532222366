"""``cloister peer``: who may send, where results go, who was turned away."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import DONE, WORK_FAILED, WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.db.clinical import Peer
    from appliance.node import ClinicalZone

JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the peer.")]
ACTOR = "command"


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    peer = typer.Typer(help="Who may send studies, and where results go.", no_args_is_help=True)
    peer.command("add")(add)
    peer.command("list")(list_all)
    peer.command("enable")(enable)
    peer.command("disable")(disable)
    peer.command("remove")(remove)
    peer.command("echo")(echo)
    peer.command("rejected")(rejected)
    app.add_typer(peer, name="peer")


def add(
    config: ConfigOption,
    name: NameArgument,
    ae_title: Annotated[str, typer.Argument(help="Its AE title.")],
    host: Annotated[
        str, typer.Argument(help="Its address or name; for a sender also a network (10.1.0.0/16).")
    ],
    port: Annotated[int, typer.Argument(help="Its port; needed for a destination.")] = 0,
    may_send: Annotated[bool, typer.Option("--may-send", help="It may send studies.")] = False,
    destination: Annotated[bool, typer.Option("--destination", help="Results may go there.")] = False,
) -> None:
    """Add a peer."""
    from appliance.peers import NewPeer, add_peer  # noqa: PLC0415 - other commands need no database

    new = NewPeer(name, ae_title, host, port, may_send=may_send, is_destination=destination)
    _change(config, lambda zone, session: add_peer(session, zone.ledger, new, actor=ACTOR))
    typer.echo(f"{name}: added")


def list_all(config: ConfigOption, as_json: JSONOption = False) -> None:
    """List all peers."""
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import list_peers  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows = [_row(peer) for peer in list_peers(session)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        uses = [
            word
            for word, wanted in (("sends", row["may_send"]), ("receives", row["is_destination"]))
            if wanted
        ]
        state = "" if row["enabled"] else "  (disabled)"
        address = f"{row['host']}:{row['port']}" if row["port"] else row["host"]
        typer.echo(f"{row['name']:<24} {row['ae_title']:<16} {address:<32} {', '.join(uses)}{state}")


def enable(config: ConfigOption, name: NameArgument) -> None:
    """Allow a peer again."""
    _set_enabled(config, name, enabled=True)


def disable(config: ConfigOption, name: NameArgument) -> None:
    """Refuse a peer without forgetting it."""
    _set_enabled(config, name, enabled=False)


def remove(config: ConfigOption, name: NameArgument) -> None:
    """Remove a peer that nothing was delivered to."""
    from appliance.peers import remove_peer  # noqa: PLC0415

    _change(config, lambda zone, session: remove_peer(session, zone.ledger, name=name, actor=ACTOR))
    typer.echo(f"{name}: removed")


def echo(
    config: ConfigOption,
    name: NameArgument,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 10,
    as_json: JSONOption = False,
) -> None:
    """Ask a destination whether it is there (C-ECHO)."""
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import destination_of, get_peer  # noqa: PLC0415
    from dicom_node import scu  # noqa: PLC0415

    zone = _zone(config)
    with reading(zone.engine) as session:
        peer = get_peer(session, name)
    if not peer.port:
        typer.echo(f"{name}: has no port; only a destination can be asked", err=True)
        raise typer.Exit(WRONG_USE)
    outcome = scu.echo(destination_of(peer, timeout_s), zone.settings.dicom.ae_title)
    if as_json:
        values = {"ok": outcome.ok, "reason": outcome.reason, "round_trip_s": round(outcome.round_trip_s, 4)}
        typer.echo(json.dumps(values))
    else:
        typer.echo(f"{name}: {outcome.reason} ({outcome.round_trip_s * 1000:.0f} ms)")
    raise typer.Exit(DONE if outcome.ok else WORK_FAILED)


def rejected(config: ConfigOption, as_json: JSONOption = False) -> None:
    """List callers that were turned away."""
    from appliance.db.engine import reading  # noqa: PLC0415
    from appliance.peers import list_rejected  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows = [
            {
                "calling_ae_title": row.calling_ae_title,
                "called_ae_title": row.called_ae_title,
                "address": row.address,
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
            f"{item['last_seen_at']}  {item['calling_ae_title']:<16} from {item['address']:<24} "
            f"to {item['called_ae_title']:<16} {item['reason']} ({item['count']} times)"
        )


def _set_enabled(config: Path, name: str, *, enabled: bool) -> None:
    from appliance.peers import set_enabled  # noqa: PLC0415

    _change(
        config,
        lambda zone, session: set_enabled(session, zone.ledger, name=name, enabled=enabled, actor=ACTOR),
    )
    typer.echo(f"{name}: {'enabled' if enabled else 'disabled'}")


def _change(config: Path, change: Callable[[ClinicalZone, Any], object]) -> None:
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.peers import PeerError  # noqa: PLC0415

    zone = _zone(config)
    try:
        with writing(zone.engine) as session:
            change(zone, session)
    except PeerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))


def _row(peer: Peer) -> dict[str, Any]:
    return {
        "name": peer.name,
        "ae_title": peer.ae_title,
        "host": peer.host,
        "port": peer.port,
        "may_send": peer.may_send,
        "is_destination": peer.is_destination,
        "enabled": peer.enabled,
        "last_seen_at": peer.last_seen_at.isoformat(timespec="seconds") if peer.last_seen_at else None,
    }
