"""``cloister vault``: the sealed identities behind the pseudonyms."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings
from appliance.cli.passwords import PasswordStdin, ask_password
from appliance.errors import ApplianceError
from appliance.purposes import Purpose

if TYPE_CHECKING:
    from appliance.auth import Principal
    from appliance.node import ClinicalZone

_Reason = Annotated[str, typer.Option(help="Why; the ledger keeps a commitment to it.")]
_User = Annotated[str, typer.Option(help="Who asks; needs the right reidentify.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The sealed identities behind the pseudonyms.", no_args_is_help=True)
    group.command("rotate")(rotate)
    group.command("reidentify")(reidentify)
    group.command("export")(export)
    group.command("open")(open_export)
    app.add_typer(group, name="vault")


def rotate(config: ConfigOption) -> None:
    """Seal all identities with a new key and destroy the old one; repeat it when it was stopped."""
    from appliance import node, vault  # noqa: PLC0415 - other commands start without it

    zone = node.open_clinical(read_settings(config))
    with typer.progressbar(length=1, label="sealing", file=sys.stderr) as bar:

        def advance(done: int, of: int) -> None:
            bar.length = max(of, 1)
            bar.update(done - bar.pos)

        total = vault.rotate(zone, on_progress=advance)
    zone.engine.dispose()
    typer.echo(f"{total} entries are sealed with a new key; the old one is destroyed")


def reidentify(
    pseudonym: Annotated[str, typer.Argument(metavar="PSEUDONYM")],
    config: ConfigOption,
    reason: _Reason,
    user: _User,
    purpose: Annotated[Purpose, typer.Option(help="What for; stands in the ledger.")] = Purpose.OTHER,
    password_stdin: PasswordStdin = False,
) -> None:
    """Say who is behind a pseudonym; recorded, whatever the answer."""
    from appliance import reidentification  # noqa: PLC0415 - other commands start without it

    with _signed_in(config, user, from_stdin=password_stdin) as (zone, person):
        found = reidentification.reidentify(zone, person, pseudonym, reason, purpose)
    for identity in found:
        typer.echo(
            json.dumps(
                {"project": identity.project, "patient_id": identity.patient_id, "issuer": identity.issuer}
            )
        )


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made anew; an existing one stays.")],
    config: ConfigOption,
    recipient: Annotated[Path, typer.Option(help="The recipient's public key (PEM; X25519 or RSA).")],
    reason: _Reason,
    user: _User,
    password_stdin: PasswordStdin = False,
) -> None:
    """Write all identities to a file that only the recipient can open; recorded."""
    from anonymizer import escrow  # noqa: PLC0415 - other commands start without it
    from anonymizer.errors import SealError  # noqa: PLC0415 - as above
    from appliance import reidentification  # noqa: PLC0415 - as above

    if file.exists():
        raise ApplianceError(f"{file}: exists; expected a new file")
    try:
        key = escrow.read_recipient(_content(recipient))
    except SealError as error:
        raise ApplianceError(f"{recipient}: {error}") from error
    with _signed_in(config, user, from_stdin=password_stdin) as (zone, person):
        sealed, entries = reidentification.export(zone, person, key, reason)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            target.write(sealed)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise ApplianceError(f"{file}: {error.strerror}") from error
    typer.echo(f"{entries} entries for the key {escrow.fingerprint(key)}")


def open_export(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    key: Annotated[Path, typer.Option(help="The recipient's private key (PEM).")],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the key's password from standard input.")
    ] = False,
) -> None:
    """Print what ``export`` wrote for this key, as JSON; needs no node."""
    from anonymizer import escrow  # noqa: PLC0415 - other commands start without it
    from anonymizer.errors import SealError  # noqa: PLC0415 - as above

    password = sys.stdin.readline().rstrip("\n").encode() if password_stdin else None
    try:
        opened = escrow.open_with(escrow.read_private_key(_content(key), password), _content(file))
    except SealError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WORK_FAILED) from error
    typer.echo(json.dumps(json.loads(opened), indent=2))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ApplianceError(f"{path}: {error.strerror}") from error


@contextmanager
def _signed_in(config: Path, name: str, *, from_stdin: bool) -> Iterator[tuple["ClinicalZone", "Principal"]]:
    """Sign a user in for one command."""
    from appliance import auth, node  # noqa: PLC0415 - other commands start without it
    from appliance.db.base import now  # noqa: PLC0415 - as above

    zone = node.open_clinical(read_settings(config))
    password = ask_password(from_stdin=from_stdin)
    signed = auth.sign_in(zone.engine, zone.ledger, name=name, password=password, hours=1, at=now())
    try:
        yield zone, signed.principal
    finally:
        auth.sign_out(zone.engine, signed.token)
        zone.engine.dispose()
