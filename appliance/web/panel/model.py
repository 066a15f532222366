"""One model version: what it is for, where it comes from, how it did here, who decided what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance.auth.rights import Right
from appliance.db.clinical import ModelVersion
from appliance.db.engine import reading
from appliance.db.people import User
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.models import ACTIONS, buttons, life_cycle
from appliance.web.panel.page import Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import badge, card, code, facts, grid, nothing, page_head

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer
    from inference.deviations import Threshold


@dataclass(frozen=True)
class ModelView:
    """One model version."""

    id: str
    name: str
    version: str
    state: str
    reason: str | None
    signer: str
    modalities: str
    package_sha256: str
    metrics: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]  # what the card says that it finds or marks, and in what
    provenance: tuple[tuple[str, str], ...]
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime
    can_decide: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> ModelView:
    """Read one version."""
    with reading(desk.zone.engine) as session:
        model = session.get(ModelVersion, query.text("model_id"))
        if model is None:
            raise NotThereError("model version: no such row")
        decider = (
            session.scalar(select(User.name).where(User.id == model.decided_by)) if model.decided_by else None
        )
    return ModelView(
        id=model.id,
        name=model.name,
        version=model.version,
        state=model.state,
        reason=model.reason,
        signer=model.signer,
        modalities=model.modalities.replace("\\", ", "),
        package_sha256=model.package_sha256,
        metrics=tuple(flatten(model.metrics)),
        answers=_answers(desk.zone.root / model.path),
        provenance=tuple(flatten(model.provenance)),
        decided_by=decider or model.decided_by,
        decided_at=model.decided_at,
        created_at=model.created_at,
        can_decide=Right.APPROVE_MODEL in viewer.rights,
    )


def _answers(folder: Path) -> tuple[tuple[str, str], ...]:
    """Read what a version finds or marks from its card; empty for one that was refused, which has none."""
    path = folder / "model.json"
    if not path.is_file():
        return ()
    from inference.card import ModelCard  # noqa: PLC0415 - loaded with the first version that is opened

    card = ModelCard.from_bytes(path.read_bytes())
    size = " x ".join(map(str, card.input.size))
    if not card.segmenting:
        return (
            ("Finds", ", ".join(one.meaning for one in card.output.findings)),
            ("Input", f"{size} pixels"),
        )
    marks = ", ".join(one.meaning for one in card.output.segments)
    if card.threshold is not None:
        return (
            ("Marks", marks),
            ("Threshold", _threshold(card.threshold)),
            ("Input", f"{size} pixels of one picture"),
        )
    if card.input.volume is None:
        return (("Marks", marks), ("Input", f"{size} pixels of one picture"))
    spacing = " x ".join(f"{value:g}" for value in card.input.volume.spacing_mm)
    return (("Marks", marks), ("Input", f"{size} voxels of a series, {spacing} mm"))


def _threshold(found: Threshold) -> str:
    """Say how the threshold was found."""
    return (
        f"{found.value:.4g}: {100 * found.healthy_share:g} % of the pixels of {found.pictures} healthy "
        f"held-out pictures of {found.people} people lie at or below"
    )


def flatten(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn a nested document into readable lines, in its own order."""
    lines: list[tuple[str, str]] = []
    for key, value in document.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            interval = _interval(value)
            lines += [(name, interval)] if interval else flatten(value, f"{name} · ")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            lines.append((name, json.dumps(value)[:400]))
        elif isinstance(value, list):
            lines.append((name, ", ".join(_scalar(item) for item in value) or DASH))
        else:
            lines.append((name, _scalar(value)))
    return lines


def _interval(value: Mapping[str, Any]) -> str:
    """Write an estimate with its confidence interval; empty for any other document."""
    low, high = value.get("low", value.get("lower")), value.get("high", value.get("upper"))
    estimate = value.get("value", value.get("estimate"))
    numbers = (estimate, low, high)
    if not all(isinstance(number, int | float) for number in numbers):
        return ""
    return "{:.3f} (95 % CI {:.3f} to {:.3f})".format(*numbers)


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return DASH if value is None or value == "" else str(value)


def draw(view: ModelView, viewer: Viewer) -> Drawing:
    """Draw the version."""
    del viewer
    decisions = buttons(view.id, view.state, f"{view.name} {view.version}", can_decide=view.can_decide)
    return {
        "head": page_head(
            f"{view.name} {view.version}",
            decisions,
            marks=badge(view.state),
            lead=view.reason,
            back=("/models", "Models"),
        ),
        "life": life_cycle(view.state),
        "body": grid(el("div", _figures(view), _history(view), class_="column"), _package(view)),
    }


def _figures(view: ModelView) -> Markup:
    if not view.metrics:
        return card(
            "On this hospital's hold-out",
            nothing("Not evaluated yet.", "The evaluation report comes with the package."),
        )
    return card("On this hospital's hold-out", facts(view.metrics))


def _history(view: ModelView) -> Markup:
    rows: list[tuple[str, object]] = [
        ("Came in", when(view.created_at, seconds=True)),
        ("Last decision", when(view.decided_at, seconds=True)),
        ("Decided by", view.decided_by or "nobody yet"),
    ]
    return card("Decisions", facts(rows))


def _package(view: ModelView) -> Markup:
    rows: list[tuple[str, object]] = [
        ("Package", code(view.package_sha256, length=64)),
        ("Signed by", view.signer or DASH),
        ("Modality", view.modalities or "any"),
        *view.answers,
        *view.provenance,
    ]
    return card("Package and provenance", facts(rows))


PAGE: Final = Page(
    path="/models/{model_id}",
    title="Model",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions=ACTIONS,
    menu="/models",
)
