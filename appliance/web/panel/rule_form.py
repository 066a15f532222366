"""The forms of a rule: simple fields for a new one, the whole condition as JSON for any."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from appliance import actions, schedules
from appliance.conditions import RuleError
from appliance.web.panel.markup import el
from appliance.web.panel.parts import FIELD, check_field, text_field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from appliance.actions import Outcome

MAX_JSON: Final = 1999  # of a field of an event
_LISTS: Final = (("Modality", "modality"), ("BodyPartExamined", "body_part"))


def simple() -> Markup:
    """Draw the fields of a new rule."""
    return el(
        "div",
        text_field("name", "Name", maxlength=64),
        el(
            "div",
            text_field("modality", "Modality", required=False, hint="Such as CT, MR."),
            text_field("body_part", "Body part", required=False, hint="Such as CHEST, HEAD."),
            class_="halves",
        ),
        el(
            "div",
            text_field("description", "Description matches", required=False, hint="A pattern: thorax|lung."),
            text_field("source", "Sent by", required=False, hint="AE titles or names of peers."),
            class_="halves",
        ),
        text_field("time", "Assembled within", required=False, hint="Such as mon-fri 18:00-07:00."),
        class_="fields-list",
    )


def condition_field(condition: Mapping[str, Any]) -> Markup:
    """Draw the whole condition as JSON."""
    text = json.dumps(condition, indent=1, ensure_ascii=False)
    hint = (
        'Such as {"all": [{"attribute": "Modality", "in": ["CT"]}, {"source": ["PACS"]}]}; see docs/rules.md.'
    )
    area = el("textarea", text, name=f"{FIELD}condition", rows="8", maxlength=MAX_JSON, spellcheck="false")
    return el("label", el("span", "Condition"), area, el("small", hint), class_="field code-field")


def action_fields(action: Mapping[str, Any], destinations: Sequence[str], models: Sequence[str]) -> Markup:
    """Draw what a rule does."""
    priority = action.get("priority", actions.DEFAULT_PRIORITY)
    known = ", ".join(destinations) or "no destination among the peers yet"
    return el(
        "fieldset",
        el("legend", "Then"),
        check_field("research", "De-identify for research", checked=action.get("research") is True),
        check_field("inference", "Run all models", checked=action.get("inference") is True),
        text_field(
            "models",
            "Or these models alone",
            value=", ".join(action.get("models", ())),
            required=False,
            hint=f"Known: {', '.join(models) or 'none yet'}.",
        ),
        text_field(
            "destinations",
            "Results to",
            value=", ".join(action.get("destinations", ())),
            required=False,
            hint=f"Known: {known}.",
        ),
        el(
            "div",
            text_field(
                "priority", "Priority", kind="number", value=str(priority), min=0, max=9, hint="0 is first."
            ),
            text_field(
                "discard",
                "Discard, because",
                value=action.get("discard", ""),
                required=False,
                maxlength=actions.MAX_REASON,
                hint="Nothing else is done then.",
            ),
            class_="halves",
        ),
    )


def trying() -> Markup:
    """Draw the way to try what the form says, unsaved."""
    return el(
        "div",
        text_field("study", "Try on study", required=False, hint="Row id, or its beginning."),
        el("button", "Try", type="submit", class_="button", data_submit="try"),
        class_="try-line",
    )


def upload(rule: str) -> Markup:
    """Draw the form that sends a file to be tried on; the answer appears below it."""
    chosen = el("input", type="file", name=f"{FIELD}file", required=True)
    return el(
        "form",
        el("input", type="hidden", name=f"{FIELD}rule", value=rule),
        el(
            "label",
            el("span", "DICOM file"),
            chosen,
            class_="field",
        ),
        text_field("from", "Sent by AE title", required=False, maxlength=16),
        el("button", "Try", type="submit", class_="button"),
        el(
            "output",
            "Its header is read, with the rule that was tried above; it is stored nowhere.",
            class_="said muted",
        ),
        class_="filters",
        data_upload="/api/v1/rules/try",
    )


def simple_condition(fields: Mapping[str, str]) -> dict[str, Any]:
    """Read the simple fields as a condition.

    Raises
    ------
    RuleError
        If the span of time is none; what else is wrong the rule's own check names.
    """
    parts: list[dict[str, Any]] = [
        {"attribute": keyword, "in": values} for keyword, name in _LISTS if (values := _names(fields, name))
    ]
    if pattern := fields.get("description", "").strip():
        parts.append({"attribute": "StudyDescription", "matches": pattern})
    if sources := _names(fields, "source"):
        parts.append({"source": sources})
    try:
        span = schedules.parse(fields.get("time", ""))
    except ValueError as error:
        raise RuleError(f"time: {error}") from error
    parts += [{"time": span}] if span else []
    return parts[0] if len(parts) == 1 else {"all": parts} if parts else {}


def condition_of(fields: Mapping[str, str]) -> Any:
    """Read a condition as JSON; raises RuleError if it is none."""
    text = fields.get("condition", "").strip() or "{}"
    if len(text) > MAX_JSON:
        raise RuleError(f"condition: expected at most {MAX_JSON} characters here; the command takes more")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise RuleError(f"condition: expected JSON; look at line {line}") from error


def action_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """Read all fields of an action, so that what is empty is taken away."""
    priority = fields.get("priority", "").strip() or str(actions.DEFAULT_PRIORITY)
    whole = priority.isascii() and priority.isdecimal() and len(priority) < 4
    return {
        "research": "research" in fields,
        "inference": "inference" in fields,
        "models": _names(fields, "models"),
        "destinations": _names(fields, "destinations"),
        "priority": int(priority) if whole else -1,
        "discard": fields.get("discard", "").strip(),
    }


def outcome_words(outcome: Outcome) -> str:
    """Say what a study would get."""
    return actions.describe(
        {
            "inference": outcome.inference,
            "models": outcome.models,
            "research": outcome.research,
            "destinations": outcome.destinations,
            "priority": outcome.priority,
            "discard": outcome.discard,
        }
    )


def _names(fields: Mapping[str, str], name: str) -> list[str]:
    return [part.strip() for part in fields.get(name, "").split(",") if part.strip()]
