"""``cloister model``: the model versions of this node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from appliance.cli import ConfigOption, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.db.clinical import ModelVersion
    from appliance.node import ClinicalZone

JSONOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
ModelArgument = Annotated[str, typer.Argument(help="Row id or package hash, or the first 8 digits of it.")]
UserOption = Annotated[str, typer.Option("--user", help="Name of the user who decides; needs approve_model.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Model versions: look at them, let them serve, take them out.")
    group.command(name="list")(list_models)
    group.command(name="show")(show)
    group.command(name="approve")(approve)
    group.command(name="retire")(retire)
    group.command(name="rollback")(rollback)
    app.add_typer(group, name="model", no_args_is_help=True)


def list_models(config: ConfigOption, as_json: JSONOption = False) -> None:
    """List all model versions, newest first."""
    from appliance import models  # noqa: PLC0415  only when the command runs

    versions = models.list_versions(_zone(config))
    if as_json:
        typer.echo(json.dumps([_summary(version) for version in versions], indent=2))
        return
    if not versions:
        typer.echo("no model version yet")
    for version in versions:
        reason = f"  {version.reason}" if version.reason else ""
        line = f"{version.id[:8]}  {version.state:<10} {version.name} {version.version}"
        typer.echo(f"{line}  package {version.package_sha256[:12]}{reason}")


def show(model: ModelArgument, config: ConfigOption, as_json: JSONOption = False) -> None:
    """Show one model version with its metrics and where it comes from."""
    from appliance import models  # noqa: PLC0415

    version = models.find_version(_zone(config), model)
    facts = {**_summary(version), "metrics": version.metrics, "provenance": version.provenance}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        text = json.dumps(value, indent=2) if isinstance(value, dict) else value
        typer.echo(f"{name}: {text if text is not None else '-'}")


def approve(
    model: ModelArgument,
    config: ConfigOption,
    user: UserOption,
    to: Annotated[
        Literal["shadow", "active"],
        typer.Option(help="shadow: results stay here; active: results are delivered."),
    ],
) -> None:
    """Let a model version serve; one that becomes active replaces the active one of its name."""
    from appliance import models  # noqa: PLC0415

    zone = _zone(config)
    version = models.find_version(zone, model)
    models.approve(zone, version.id, _user_id(zone, user), to)
    typer.echo(f"{version.name} {version.version} is {to}")


def retire(model: ModelArgument, config: ConfigOption, user: UserOption) -> None:
    """Take a model version out of service."""
    from appliance import models  # noqa: PLC0415

    zone = _zone(config)
    version = models.find_version(zone, model)
    models.retire(zone, version.id, _user_id(zone, user))
    typer.echo(f"{version.name} {version.version} is retired")


def rollback(
    name: Annotated[str, typer.Argument(help="Name of the model.")], config: ConfigOption, user: UserOption
) -> None:
    """Put back the version that the active one of this name replaced."""
    from appliance import models  # noqa: PLC0415

    zone = _zone(config)
    version = models.find_version(zone, models.rollback(zone, name, _user_id(zone, user)))
    typer.echo(f"{version.name} {version.version} is active again")


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))


def _user_id(zone: ClinicalZone, name: str) -> str:
    from appliance.auth.users import find_user  # noqa: PLC0415
    from appliance.db.engine import reading  # noqa: PLC0415

    with reading(zone.engine) as session:
        return find_user(session, name).id


def _summary(version: ModelVersion) -> dict[str, Any]:
    return {
        "id": version.id,
        "name": version.name,
        "version": version.version,
        "state": version.state,
        "reason": version.reason,
        "package_sha256": version.package_sha256,
        "signer": version.signer,
        "modalities": [item for item in version.modalities.split("\\") if item],
        "created_at": version.created_at.isoformat(),
        "decided_by": version.decided_by,
        "decided_at": None if version.decided_at is None else version.decided_at.isoformat(),
    }
