"""``cloister rule``: what happens with an assembled study."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.node import ClinicalZone
    from appliance.rules import RuleChange

ACTOR = "command"
NameArgument = Annotated[str, typer.Argument(help="Name of the rule.")]
ModalityOption = Annotated[
    list[str] | None, typer.Option("--modality", help="Only studies with this modality; may be repeated.")
]
BodyPartOption = Annotated[
    list[str] | None, typer.Option("--body-part", help="Only with this BodyPartExamined; may be repeated.")
]
SenderOption = Annotated[
    list[str] | None, typer.Option("--from", help="Only from this calling AE title; may be repeated.")
]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", help="Only if StudyDescription holds this regular expression.")
]
DestinationOption = Annotated[
    list[str] | None, typer.Option("--destination", help="Peer that gets the results; may be repeated.")
]
ResearchOption = Annotated[
    bool | None, typer.Option("--research/--no-research", help="De-identify for the research zone.")
]
InferenceOption = Annotated[bool | None, typer.Option("--inference/--no-inference", help="Run the models.")]
PriorityOption = Annotated[int | None, typer.Option("--priority", help="0 (most urgent) to 9.")]
EnabledOption = Annotated[bool | None, typer.Option("--enable/--disable", help="Switch the rule on or off.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    rule = typer.Typer(help="What happens with an assembled study.", no_args_is_help=True)
    rule.command("list")(list_all)
    rule.command("add")(add)
    rule.command("set")(change)
    rule.command("remove")(remove)
    app.add_typer(rule, name="rule")


def list_all(
    config: ConfigOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List all rules; a study gets what all rules that match it ask for."""
    from appliance.db.engine import reading  # noqa: PLC0415 - other commands need no database
    from appliance.rules import list_rules  # noqa: PLC0415

    with reading(_zone(config).engine) as session:
        rows: list[dict[str, Any]] = [
            {"name": rule.name, "enabled": rule.enabled, "condition": rule.condition, "action": rule.action}
            for rule in list_rules(session)
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = "" if row["enabled"] else "  (disabled)"
        typer.echo(f"{row['name']}{state}\n  if    {_words(row['condition']) or 'any study'}")
        typer.echo(f"  then  {_words(row['action']) or 'nothing'}")


def add(  # noqa: PLR0913 - one parameter an option
    config: ConfigOption,
    name: NameArgument,
    *,
    modality: ModalityOption = None,
    body_part: BodyPartOption = None,
    sender: SenderOption = None,
    description: DescriptionOption = None,
    destination: DestinationOption = None,
    research: ResearchOption = None,
    inference: InferenceOption = None,
    priority: PriorityOption = None,
    enabled: EnabledOption = None,
) -> None:
    """Add a rule."""
    from appliance.rules import add_rule  # noqa: PLC0415

    new = _change_of(
        {
            "modality": modality,
            "body_part": body_part,
            "calling_ae_title": sender,
            "description": description,
        },
        {"destinations": destination, "research": research, "inference": inference, "priority": priority},
        enabled,
    )
    _write(config, lambda zone, session: add_rule(session, zone.ledger, name, new, actor=ACTOR))
    typer.echo(f"{name}: added")


def change(  # noqa: PLR0913 - one parameter an option
    config: ConfigOption,
    name: NameArgument,
    *,
    modality: ModalityOption = None,
    body_part: BodyPartOption = None,
    sender: SenderOption = None,
    description: DescriptionOption = None,
    destination: DestinationOption = None,
    research: ResearchOption = None,
    inference: InferenceOption = None,
    priority: PriorityOption = None,
    enabled: EnabledOption = None,
) -> None:
    """Change the given fields of a rule; the others stay."""
    from appliance.rules import change_rule  # noqa: PLC0415

    new = _change_of(
        {
            "modality": modality,
            "body_part": body_part,
            "calling_ae_title": sender,
            "description": description,
        },
        {"destinations": destination, "research": research, "inference": inference, "priority": priority},
        enabled,
    )
    _write(config, lambda zone, session: change_rule(session, zone.ledger, name, new, actor=ACTOR))
    typer.echo(f"{name}: changed")


def remove(config: ConfigOption, name: NameArgument) -> None:
    """Remove a rule."""
    from appliance.rules import remove_rule  # noqa: PLC0415

    _write(config, lambda zone, session: remove_rule(session, zone.ledger, name, actor=ACTOR))
    typer.echo(f"{name}: removed")


def _change_of(condition: dict[str, Any], action: dict[str, Any], enabled: bool | None) -> RuleChange:
    from appliance.rules import RuleChange  # noqa: PLC0415

    return RuleChange(
        condition={name: value for name, value in condition.items() if value},
        action={name: value for name, value in action.items() if value is not None},
        enabled=enabled,
    )


def _words(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {'/'.join(value) if isinstance(value, list) else json.dumps(value)}"
        for name, value in values.items()
    )


def _write(config: Path, change: Callable[[ClinicalZone, Any], object]) -> None:
    from appliance.db.engine import writing  # noqa: PLC0415
    from appliance.routing import RuleError  # noqa: PLC0415

    zone = _zone(config)
    try:
        with writing(zone.engine) as session:
            change(zone, session)
    except RuleError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from error


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))
