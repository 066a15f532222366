"""``cloister peer add`` and ``change``: one option for each field of a peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.node import ClinicalZone

NameArgument = Annotated[str, typer.Argument(help="Name of the peer.")]
ACTOR = "command"

# None leaves a field as it is.
MaySend = Annotated[bool | None, typer.Option("--may-send/--may-not-send", help="It may send studies.")]
IsDestination = Annotated[
    bool | None, typer.Option("--destination/--no-destination", help="Results may go there.")
]
MayQuery = Annotated[
    bool | None, typer.Option("--may-query/--may-not-query", help="It may query and retrieve what we hold.")
]
IsArchive = Annotated[
    bool | None, typer.Option("--archive/--no-archive", help="We query it and fetch studies from it.")
]
Protocol = Annotated[str | None, typer.Option("--protocol", help="How we call it: dimse or dicomweb.")]
URL = Annotated[str | None, typer.Option("--url", help="Base of its DICOMweb services.")]
Credential = Annotated[
    str | None, typer.Option("--credential", help="Name of its secret (cloister peer secret).")
]
TLS = Annotated[bool | None, typer.Option("--tls/--no-tls", help="Over TLS alone, in both directions.")]
Certificate = Annotated[
    str | None,
    typer.Option("--certificate", help="SHA-256 of the one certificate that it must show, or its PEM file."),
]
MaxAssociations = Annotated[
    int | None, typer.Option("--max-associations", help="It may open at once; 0: no bound of its own.")
]
MaxPerMinute = Annotated[
    int | None, typer.Option("--max-per-minute", help="Instances that it may send a minute; 0: no bound.")
]
MaxKibPerS = Annotated[
    int | None, typer.Option("--max-kib-per-s", help="KiB a second that we send or fetch; 0: no bound.")
]
QuietPeriod = Annotated[
    str | None, typer.Option("--quiet-period", help="Seconds, for its studies; 'default': the node's.")
]
MaxWait = Annotated[
    str | None, typer.Option("--max-wait", help="Seconds, for its studies; 'default': the node's.")
]
TransferSyntax = Annotated[
    str | None, typer.Option("--transfer-syntax", help="UID to send in; empty: as stored.")
]
Commitment = Annotated[
    bool | None, typer.Option("--commitment/--no-commitment", help="Ask it to commit what it stored.")
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help="When we may send to it: always, or such as mon-fri 20:00-06:00."),
]
WatchSilence = Annotated[
    bool | None,
    typer.Option("--watch-silence/--no-watch-silence", help="Raise an alarm when it falls silent."),
]


def add(  # noqa: PLR0913, PLR0917 -- one option for each field
    config: ConfigOption,
    name: NameArgument,
    ae_title: Annotated[str, typer.Argument(help="Its AE title.")] = "",
    host: Annotated[
        str, typer.Argument(help="Its address or name; for a sender also a network (10.1.0.0/16).")
    ] = "",
    port: Annotated[int, typer.Argument(help="Its port; needed for a peer that we call.")] = 0,
    may_send: MaySend = None,
    is_destination: IsDestination = None,
    may_query: MayQuery = None,
    is_archive: IsArchive = None,
    protocol: Protocol = None,
    url: URL = None,
    credential: Credential = None,
    tls: TLS = None,
    certificate_sha256: Certificate = None,
    max_associations: MaxAssociations = None,
    max_instances_per_minute: MaxPerMinute = None,
    max_kib_per_s: MaxKibPerS = None,
    quiet_period_s: QuietPeriod = None,
    max_wait_s: MaxWait = None,
    transfer_syntax_uid: TransferSyntax = None,
    commitment: Commitment = None,
    schedule: Schedule = None,
    watch_silence: WatchSilence = None,
) -> None:
    """Add a peer."""
    given = locals()
    from appliance.peers import NewPeer, add_peer  # noqa: PLC0415 - other commands need no database

    new = NewPeer(**_values(given))
    change_rows(config, lambda zone, session: add_peer(session, zone.ledger, new, actor=ACTOR))
    typer.echo(f"{name}: added")


def change(  # noqa: PLR0913, PLR0917 -- as above
    config: ConfigOption,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="Its new name.")] = None,
    ae_title: Annotated[str | None, typer.Option("--ae-title", help="Its AE title.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Its address, name or network.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Its port.")] = None,
    may_send: MaySend = None,
    is_destination: IsDestination = None,
    may_query: MayQuery = None,
    is_archive: IsArchive = None,
    protocol: Protocol = None,
    url: URL = None,
    credential: Credential = None,
    tls: TLS = None,
    certificate_sha256: Certificate = None,
    max_associations: MaxAssociations = None,
    max_instances_per_minute: MaxPerMinute = None,
    max_kib_per_s: MaxKibPerS = None,
    quiet_period_s: QuietPeriod = None,
    max_wait_s: MaxWait = None,
    transfer_syntax_uid: TransferSyntax = None,
    commitment: Commitment = None,
    schedule: Schedule = None,
    watch_silence: WatchSilence = None,
) -> None:
    """Change fields of a peer; what is not named stays as it is."""
    given = locals()
    from appliance.peers import change_peer  # noqa: PLC0415

    changes = _values({**given, "name": given["new_name"]})
    change_rows(
        config,
        lambda zone, session: change_peer(session, zone.ledger, name=name, changes=changes, actor=ACTOR),
    )
    typer.echo(f"{new_name or name}: changed")


def change_rows(config: Path, change: Callable[[ClinicalZone, Any], object]) -> None:
    """Change peers in one transaction; what is wrong ends the command with exit code 2."""
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.node import open_clinical  # noqa: PLC0415
    from appliance.peers import PeerError  # noqa: PLC0415

    zone = open_clinical(read_settings(config))
    try:
        with writing(zone.engine) as session:
            change(zone, session)
    except PeerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _values(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given as fields of a peer."""
    from appliance import schedules  # noqa: PLC0415
    from appliance.peer_values import FIELDS  # noqa: PLC0415

    values = {field: given[field] for field in FIELDS if given.get(field) is not None}
    try:
        for field in ("quiet_period_s", "max_wait_s"):
            if field in values:
                values[field] = None if values[field] == "default" else _number(field, values[field])
        if "schedule" in values:
            values["schedule"] = schedules.parse(values["schedule"])
        if values.get("certificate_sha256"):
            values["certificate_sha256"] = _fingerprint(values["certificate_sha256"])
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error
    return values


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{field}: expected seconds, or default") from None


def _fingerprint(text: str) -> str:
    """Return a fingerprint as given, or that of the certificate in a file."""
    from dicom_node.tls import describe  # noqa: PLC0415

    path = Path(text)
    if len(text) < 255 and path.is_file():
        return describe(path.read_bytes()).sha256
    return text
