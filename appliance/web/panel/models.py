"""Models: every version that came through the door in, its standing, and the decisions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.clinical import ModelState, ModelVersion, Result
from appliance.db.engine import reading
from appliance.errors import ApplianceError
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import Ask, Column, badge, button, link, nothing, page_head, stack, table

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class ModelRow:
    """A model version in the list."""

    id: str
    name: str
    version: str
    state: str
    reason: str | None
    modalities: str
    figure: tuple[str, float] | None  # AUC of findings, Dice of segments
    result_count: int
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime


@dataclass(frozen=True)
class ModelsView:
    """All model versions, newest first."""

    rows: tuple[ModelRow, ...]
    serving: tuple[str, ...]
    can_decide: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> ModelsView:
    """Read all model versions."""
    del query
    with reading(desk.zone.engine) as session:
        counts = {
            str(id_): int(number)
            for id_, number in session.execute(
                select(Result.model_version_id, func.count(Result.study_revision_id.distinct())).group_by(
                    Result.model_version_id
                )
            )
        }
        people = users.names(session)
        models = session.scalars(
            select(ModelVersion).order_by(ModelVersion.created_at.desc()).limit(200)
        ).all()
    names = {model.id: f"{model.name} {model.version}" for model in models}
    rows = tuple(
        ModelRow(
            id=model.id,
            name=model.name,
            version=model.version,
            state=model.state,
            reason=_reason(model, names),
            modalities=model.modalities.replace("\\", ", "),
            figure=find_figure(model.metrics),
            result_count=counts.get(model.id, 0),
            decided_by=people.get(model.decided_by or "", model.decided_by),
            decided_at=model.decided_at,
            created_at=model.created_at,
        )
        for model in models
    )
    serving = tuple(f"{row.name} {row.version}" for row in rows if row.state == ModelState.ACTIVE)
    return ModelsView(rows=rows, serving=serving, can_decide=Right.APPROVE_MODEL in viewer.rights)


def _reason(model: ModelVersion, names: Mapping[str, str]) -> str | None:
    """Write the name of a version where its row id stands in the reason."""
    if model.reason is None:
        return None
    return " ".join(names.get(word, word) for word in model.reason.split(" "))


def find_figure(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the figure that stands for all, with its name: Dice of segments, else AUC."""
    for key, name in (("dice", "Dice"), ("auc", "AUC")):
        value = _find(metrics, key)
        if value is not None:
            return name, value
    return None


def _find(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return an estimate from a metrics document, whichever way it is nested."""
    value = metrics.get(key)
    if isinstance(value, Mapping):
        value = value.get("value", value.get("estimate"))
    if isinstance(value, int | float):
        return float(value)
    for nested in metrics.values():
        if isinstance(nested, Mapping) and (found := _find(nested, key)) is not None:
            return found
    return None


def draw(view: ModelsView, viewer: Viewer) -> Drawing:
    """Draw the list."""
    del viewer
    serving = f"Serving now: {', '.join(view.serving)}." if view.serving else "No model serves now."
    return {
        "head": page_head("Models", lead=f"{serving} A person with the right decides what serves."),
        "life": life_cycle(),
        "list": el("div", _table(view), class_="alone"),
    }


def life_cycle(at: str = "") -> Markup:
    """Draw the life of a model version, the present step in bold."""
    steps = ("candidate", "evaluated", "shadow", "active", "retired")
    parts: list[Markup] = []
    for step in steps:
        parts += [
            el("b" if step == at else "span", step, aria_current="step" if step == at else None),
            el("span", "→", aria_hidden="true"),
        ]
    return el("p", parts[:-1], class_="life", aria_label="Life of a model version")


def _table(view: ModelsView) -> Markup:
    columns = (
        Column("Model", "wide"),
        Column("State", "wide"),
        Column("Modality", "tight"),
        Column("Measured here", "number"),
        Column("Studies read", "number"),
        Column("Decided", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            stack(link(f"/models/{row.id}", row.name), el("small", row.version)),
            stack(badge(row.state), el("span", row.reason, class_="reason") if row.reason else None),
            row.modalities or "any",
            _measured(row),
            row.result_count,
            stack(when(row.decided_at), el("small", f"by {row.decided_by}") if row.decided_by else None),
            buttons(row.id, row.state, f"{row.name} {row.version}", can_decide=view.can_decide),
        )
        for row in view.rows
    ]
    empty = nothing(
        "No model version yet.",
        "A version appears here when a federated run ends and exports its model. ",
        link("/federation", "See the runs"),
    )
    return table("Model versions", columns, rows, empty=empty)


def _measured(row: ModelRow) -> Markup | str:
    if row.figure is None:
        return DASH
    name, value = row.figure
    return stack(f"{value:.3f}", el("small", name))


def buttons(id_: str, state: str, name: str, *, can_decide: bool) -> Markup | None:
    """Draw the decisions that are open for a version in that state."""
    if not can_decide:
        return None
    quiet = Ask(
        f"Run {name} in shadow? It reads each study that fits; its results stay here and are never delivered."
    )
    serve = Ask(
        f"Activate {name}? Its results go to the reading room. The version that serves now is retired."
    )
    back = Ask(f"Roll back {name}? It is retired, and the version that it replaced serves again.")
    leave = Ask(f"Retire {name}? It reads no further study.")
    shadow_button = button("shadow", "Shadow", described=name, id=id_, ask=quiet)
    activate_button = button("activate", "Activate", described=name, id=id_, style="primary", ask=serve)
    rollback_button = button("rollback", "Roll back", described=name, id=id_, ask=back)
    retire_button = button("retire", "Retire", described=name, id=id_, style="danger", ask=leave)
    offered: Mapping[str, tuple[Markup, ...]] = {
        ModelState.CANDIDATE: (retire_button,),
        ModelState.EVALUATED: (shadow_button, activate_button, retire_button),
        ModelState.SHADOW: (activate_button, retire_button),
        ModelState.ACTIVE: (rollback_button, shadow_button, retire_button),
    }
    chosen = offered.get(state, ())
    return el("div", chosen, class_="buttons") if chosen else None


def shadow(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a version read in shadow."""
    return _decide(desk, viewer, fields, ModelState.SHADOW, "It now reads in shadow.")


def activate(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a version serve."""
    return _decide(desk, viewer, fields, ModelState.ACTIVE, "It serves now.")


def _decide(desk: Desk, viewer: Viewer, fields: Mapping[str, str], to: str, said: str) -> str:
    from appliance import models  # noqa: PLC0415 - loaded with the first decision

    try:
        models.approve(desk.zone, fields.get("id", ""), actor=viewer.user_id, to=to)
    except ApplianceError as error:
        raise ActionRefusedError(str(error)) from error
    return said


def retire(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Take a version out of service."""
    from appliance import models  # noqa: PLC0415 - as above

    try:
        models.retire(desk.zone, fields.get("id", ""), actor=viewer.user_id)
    except ApplianceError as error:
        raise ActionRefusedError(str(error)) from error
    return "It is retired and reads no further study."


def rollback(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let the version before serve again."""
    from appliance import models  # noqa: PLC0415 - as above

    with reading(desk.zone.engine) as session:
        version = session.get(ModelVersion, fields.get("id", ""))
    if version is None or version.state != ModelState.ACTIVE:
        raise ActionRefusedError("Only the version that serves can be rolled back.")
    try:
        models.rollback(desk.zone, version.name, actor=viewer.user_id)
    except ApplianceError as error:
        raise ActionRefusedError(str(error)) from error
    return "Rolled back: the version before serves again."


ACTIONS: Final[Mapping[str, Action]] = {
    "shadow": Action(Right.APPROVE_MODEL, shadow),
    "activate": Action(Right.APPROVE_MODEL, activate),
    "retire": Action(Right.APPROVE_MODEL, retire),
    "rollback": Action(Right.APPROVE_MODEL, rollback),
}

PAGE: Final = Page(path="/models", title="Models", right=Right.VIEW, load=load, draw=draw, actions=ACTIONS)
