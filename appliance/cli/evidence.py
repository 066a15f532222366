"""``cloister evidence``: the pack for the privacy officer, and its check."""

import json
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import WORK_FAILED, ConfigOption, read_settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Evidence of how studies were de-identified.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("write")(write)
    group.command("verify")(verify)
    app.add_typer(group, name="evidence")


def write(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    config: ConfigOption,
    samples: Annotated[int, typer.Option(min=0, max=500, help="Instances that are compared.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Write what the node's research project released and stopped, by which rules, signed: JSON and PDF."""
    from appliance import node  # noqa: PLC0415 - other commands start without
    from appliance.evidence import gathering, packing  # noqa: PLC0415 - see above

    zone = node.open_clinical(read_settings(config))
    facts = gathering.gather(zone, samples)
    packing.write(folder, facts, zone.keys.signing)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    counts = facts["counts"]
    typer.echo(
        f"{folder}: {counts['instances_released']} released, {counts['instances_quarantined']} stopped, "
        f"{len(facts['samples'])} samples"
    )


def verify(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A pack.")],
    key: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The node's public key, from elsewhere.")
    ] = None,
) -> None:
    """Check that a pack is what its node signed; without --key only that it is whole."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - see write
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - see write

    from appliance.evidence import packing  # noqa: PLC0415 - see write

    known = None if key is None else load_pem_public_key(key.read_bytes())
    if known is not None and not isinstance(known, Ed25519PublicKey):
        raise packing.EvidenceError(f"{key}: expected an Ed25519 key")
    facts = packing.verify(folder, known)
    if any(sample["outcome"] not in {"released", "deleted_since"} for sample in facts["samples"]):
        typer.echo("whole and signed; but a released instance would be stopped today", err=True)
        raise typer.Exit(WORK_FAILED)
    typer.echo(f"{folder}: whole{'' if key is None else ' and of this node'}, made at {facts['made_at']}")
