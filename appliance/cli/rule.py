"""``cloister rule``: what happens with an assembled study."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from appliance.cli import WRONG_USE, ConfigOption, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.node import ClinicalZone
    from appliance.rules import RuleChange

ACTOR = "command"
PLACES = {"up": -1, "down": 1, "first": -1_000_000, "last": 1_000_000}
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
ConditionOption = Annotated[
    str | None,
    typer.Option("--condition", help="The whole condition as JSON (docs/rules.md), not single fields."),
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="Run this model alone; may be repeated.")
]
DiscardOption = Annotated[
    str | None, typer.Option("--discard", help="Do nothing with these studies; the reason. '': no more.")
]
PriorityOption = Annotated[int | None, typer.Option("--priority", help="0 (most urgent) to 9.")]
EnabledOption = Annotated[bool | None, typer.Option("--enable/--disable", help="Switch the rule on or off.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    rule = typer.Typer(help="What happens with an assembled study.", no_args_is_help=True)
    rule.command("list")(list_all)
    rule.command("add")(add)
    rule.command("set")(change)
    rule.command("move")(move)
    rule.command("remove")(remove)
    rule.command("try")(try_out)
    app.add_typer(rule, name="rule")


def list_all(
    config: ConfigOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List all rules; a study gets what all rules that match it ask for."""
    from appliance import actions, conditions  # noqa: PLC0415 - other commands need no database
    from appliance.db.engine import reading  # noqa: PLC0415
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
        typer.echo(f"{row['name']}{state}\n  if    {conditions.describe(row['condition'])}")
        typer.echo(f"  then  {actions.describe(row['action'])}")


def add(  # noqa: PLR0913 - one parameter an option
    config: ConfigOption,
    name: NameArgument,
    *,
    modality: ModalityOption = None,
    body_part: BodyPartOption = None,
    sender: SenderOption = None,
    description: DescriptionOption = None,
    condition: ConditionOption = None,
    destination: DestinationOption = None,
    research: ResearchOption = None,
    inference: InferenceOption = None,
    model: ModelOption = None,
    discard: DiscardOption = None,
    priority: PriorityOption = None,
    enabled: EnabledOption = None,
) -> None:
    """Add a rule."""
    from appliance.rules import add_rule  # noqa: PLC0415

    flat = {
        "modality": modality,
        "body_part": body_part,
        "calling_ae_title": sender,
        "description": description,
    }
    action = {
        "destinations": destination,
        "research": research,
        "inference": inference,
        "models": model,
        "discard": discard,
        "priority": priority,
    }
    new = _change_of(flat, condition, action, enabled)
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
    condition: ConditionOption = None,
    destination: DestinationOption = None,
    research: ResearchOption = None,
    inference: InferenceOption = None,
    model: ModelOption = None,
    discard: DiscardOption = None,
    priority: PriorityOption = None,
    enabled: EnabledOption = None,
) -> None:
    """Change the given fields of a rule; the others stay."""
    from appliance.rules import change_rule  # noqa: PLC0415

    flat = {
        "modality": modality,
        "body_part": body_part,
        "calling_ae_title": sender,
        "description": description,
    }
    action = {
        "destinations": destination,
        "research": research,
        "inference": inference,
        "models": model,
        "discard": discard,
        "priority": priority,
    }
    new = _change_of(flat, condition, action, enabled)
    _write(config, lambda zone, session: change_rule(session, zone.ledger, name, new, actor=ACTOR))
    typer.echo(f"{name}: changed")


def move(
    config: ConfigOption,
    name: NameArgument,
    where: Annotated[str, typer.Argument(help=f"One of {', '.join(PLACES)}.")],
) -> None:
    """Move a rule in the list. The order is for people: all rules that match apply."""
    from appliance.rules import move_rule  # noqa: PLC0415

    if where not in PLACES:
        _refuse(f"where: expected one of {', '.join(PLACES)}")
    by = PLACES[where]
    _write(config, lambda zone, session: move_rule(session, zone.ledger, name, by, actor=ACTOR))
    typer.echo(f"{name}: moved")


def remove(config: ConfigOption, name: NameArgument) -> None:
    """Remove a rule."""
    from appliance.rules import remove_rule  # noqa: PLC0415

    _write(config, lambda zone, session: remove_rule(session, zone.ledger, name, actor=ACTOR))
    typer.echo(f"{name}: removed")


def try_out(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="A rule, enabled or not; none: all that are enabled.")] = "",
    *,
    study: Annotated[str, typer.Option("--study", help="Row id of a stored study, or its beginning.")] = "",
    file: Annotated[Path | None, typer.Option("--file", help="A DICOM file; its header is read.")] = None,
    sender: Annotated[str, typer.Option("--from", help="With --file: AE title it would come from.")] = "",
    condition: ConditionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what rules would do with a study or a file, and why; nothing is done."""
    from appliance import tryout  # noqa: PLC0415
    from appliance.conditions import RuleError  # noqa: PLC0415
    from appliance.studies import StudyError, find_one  # noqa: PLC0415

    zone = _zone(config)
    if bool(study) == (file is not None):
        _refuse("expected a study or a file: --study ID or --file PATH")
    try:
        rule = tryout.unsaved(_parsed(condition), {}) if condition is not None else name or None
        if file is not None:
            outcome = tryout.on_file(zone, file, sender, rule)
        else:
            outcome = tryout.on_study(zone, find_one(zone, study), rule)
    except (RuleError, StudyError) as error:
        _refuse(str(error))
    if as_json:
        typer.echo(json.dumps(outcome.as_json(), indent=2))
        return
    for said in outcome.explanation:
        typer.echo(said.text)


def _change_of(
    flat: dict[str, Any], condition: str | None, action: dict[str, Any], enabled: bool | None
) -> RuleChange:
    from appliance.rules import RuleChange  # noqa: PLC0415

    given = {name: value for name, value in flat.items() if value}
    if condition is not None and given:
        _refuse("--condition: expected it alone, or single fields of a condition")
    return RuleChange(
        condition=given if condition is None else _parsed(condition),
        action={name: value for name, value in action.items() if value is not None},
        enabled=enabled,
        whole=condition is not None,
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        _refuse("--condition: expected JSON")


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(WRONG_USE)


def _write(config: Path, change: Callable[[ClinicalZone, Any], object]) -> None:
    from appliance.conditions import RuleError  # noqa: PLC0415
    from appliance.db.engine import writing  # noqa: PLC0415

    zone = _zone(config)
    try:
        with writing(zone.engine) as session:
            change(zone, session)
    except RuleError as error:
        _refuse(str(error))


def _zone(config: Path) -> ClinicalZone:
    from appliance.node import open_clinical  # noqa: PLC0415

    return open_clinical(read_settings(config))
