"""Retention: which studies are deleted when, and what that would be now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import conditions, retention, retention_rules
from appliance.auth.rights import Right
from appliance.conditions import RuleError
from appliance.db.base import now
from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.web.panel import rule_form
from appliance.web.panel.markup import count, el, size
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    dialog,
    link,
    nothing,
    notice,
    opener,
    page_head,
    table,
    text_field,
    url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.retention import Preview
    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class KeepRow:
    """A retention rule."""

    name: str
    enabled: bool
    words: str
    keep_days: int


@dataclass(frozen=True)
class RetentionView:
    """All rules, how many studies are held, and what would be deleted if somebody asked."""

    rows: tuple[KeepRow, ...]
    on_hold: int
    preview: Preview | None
    can_manage: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> RetentionView:
    """Read the rules; look at the studies where a preview is asked for."""
    with reading(desk.zone.engine) as session:
        rows = tuple(
            KeepRow(rule.name, rule.enabled, conditions.describe(rule.condition), rule.keep_days)
            for rule in retention_rules.list_rules(session)
        )
        on_hold = session.scalar(select(func.count()).select_from(Study).where(Study.on_hold)) or 0
    wanted = query.text("preview") == "yes"
    return RetentionView(
        rows=rows,
        on_hold=on_hold,
        preview=retention.preview(desk.zone, now()) if wanted else None,
        can_manage=Right.MANAGE_RETENTION in viewer.rights,
    )


def draw(view: RetentionView, viewer: Viewer) -> Drawing:
    """Draw the rules, the preview and the dialog."""
    del viewer
    adding = opener("add-retention", "Add rule", style="primary") if view.can_manage else None
    lead = (
        "A study is deleted when a rule says so and it is past its time, everything of it is delivered,"
        " nothing of it is open, and it is not on hold."
    )
    drawing = {
        "head": page_head("Retention", adding, lead=lead),
        "rules": card("Rules", _table(view), aside=_on_hold(view)),
        "preview": card("What would be deleted now", _preview(view)),
    }
    if view.can_manage:
        drawing["dialog"] = el("div", _dialog())
    return drawing


def _on_hold(view: RetentionView) -> Markup:
    return el("span", f"{count(view.on_hold, 'study', 'studies')} on hold", class_="muted")


def _table(view: RetentionView) -> Markup:
    columns = (
        Column("Rule", "tight"),
        Column("Studies", "wide"),
        Column("Kept", "tight"),
        Column("State", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            row.name,
            row.words,
            count(row.keep_days, "day"),
            badge("enabled" if row.enabled else "disabled"),
            _buttons(row) if view.can_manage else None,
        )
        for row in view.rows
    ]
    empty = nothing("There is no rule: nothing is ever deleted.", "Watch the disk, or add a rule.")
    return table("Retention rules", columns, rows, empty=empty)


def _buttons(row: KeepRow) -> Markup:
    if row.enabled:
        switch = button("disable", "Disable", described=row.name, name=row.name)
    else:
        ask = Ask(f"Enable {row.name}? Studies past {row.keep_days} days are deleted within the hour.")
        switch = button("enable", "Enable", described=row.name, ask=ask, name=row.name)
    ask = Ask(f"Remove the rule {row.name}?")
    return el(
        "div",
        switch,
        button("remove", "Remove", described=row.name, ask=ask, style="danger", name=row.name),
        class_="buttons",
    )


def _preview(view: RetentionView) -> Markup:
    ask = link(url("/retention", preview="yes"), "Look now", class_="button")
    found = view.preview
    if found is None:
        return el("div", el("p", "Only enabled rules count.", class_="muted"), el("p", ask))
    least = "" if found.complete else "at least "
    words = (
        f"{least}{count(found.studies, 'study', 'studies')}, {count(found.instances, 'instance')},"
        f" {size(found.size_bytes)}"
    )
    return el("div", notice("info" if not found.studies else "warn", f"Would delete {words}."), el("p", ask))


def _dialog() -> Markup:
    return dialog(
        "add-retention",
        "Add retention rule",
        "add",
        text_field("name", "Name", maxlength=64),
        text_field(
            "keep_days",
            "Keep for days",
            kind="number",
            min=1,
            max=retention_rules.MAX_DAYS,
            hint="After the last instance came. Of several rules the longest time counts.",
        ),
        rule_form.condition_field({}),
        submit="Add rule",
        lead="It is disabled at first: look at what it would delete, then enable it.",
    )


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Add a rule, switched off."""
    name, days = fields.get("name", "").strip(), fields.get("keep_days", "").strip()
    keep_days = int(days) if days.isascii() and days.isdecimal() and len(days) < 7 else 0

    def run(session: Session) -> None:
        condition = rule_form.condition_of(fields)
        ledger, actor = desk.zone.ledger, viewer.user_id
        retention_rules.add_rule(session, ledger, name, condition, keep_days, actor=actor)
        retention_rules.switch_rule(session, ledger, name, enabled=False, actor=actor)

    _do(desk, run)
    return f"{name} added, disabled."


def _switch(*, enabled: bool) -> Action:
    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        name, actor = fields.get("name", ""), viewer.user_id
        _do(
            desk,
            lambda session: retention_rules.switch_rule(
                session, desk.zone.ledger, name, enabled=enabled, actor=actor
            ),
        )
        return f"{name} {'enabled' if enabled else 'disabled'}."

    return Action(Right.MANAGE_RETENTION, run)


def remove(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Remove a rule."""
    name, actor = fields.get("name", ""), viewer.user_id
    _do(desk, lambda session: retention_rules.remove_rule(session, desk.zone.ledger, name, actor=actor))
    return f"{name} removed."


def _do(desk: Desk, run: Callable[[Session], object]) -> None:
    try:
        with writing(desk.zone.engine) as session:
            run(session)
    except RuleError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error


PAGE: Final = Page(
    path="/retention",
    title="Retention",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "add": Action(Right.MANAGE_RETENTION, add),
        "enable": _switch(enabled=True),
        "disable": _switch(enabled=False),
        "remove": Action(Right.MANAGE_RETENTION, remove),
    },
    refresh_s=30.0,
)
