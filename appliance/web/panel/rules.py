"""Rules: what happens with studies, in their order; added, changed, and tried before they are switched on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import actions, conditions, rules, studies, tryout
from appliance.auth.rights import Right
from appliance.conditions import RuleError
from appliance.db.base import now
from appliance.db.clinical import ModelVersion, Rule, Study, StudyRevision
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.web.panel import rule_form
from appliance.web.panel.markup import el
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    dialog,
    nothing,
    notice,
    opener,
    page_head,
    select_field,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

MATCHED_DAYS: Final = 7
MAX_REVISIONS: Final = 20_000


@dataclass(frozen=True)
class RuleRow:
    """A rule, and how many studies it matched lately."""

    id: str
    name: str
    enabled: bool
    condition: Mapping[str, Any]
    action: Mapping[str, Any]
    condition_words: str
    action_words: str
    matches: int


@dataclass(frozen=True)
class SaidRow:
    """What one rule says of the study that was tried."""

    rule: str
    matched: bool
    why: str


@dataclass(frozen=True)
class RulesView:
    """All rules, and what a try-out said."""

    rows: tuple[RuleRow, ...]
    rule: str
    study: str
    said: tuple[SaidRow, ...]
    would: str
    problem: str
    destinations: tuple[str, ...]
    models: tuple[str, ...]
    can_manage: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> RulesView:
    """Read the rules; try them where a study is given."""
    with reading(desk.zone.engine) as session:
        matched = _matches(session)
        rows = tuple(_row(rule, matched) for rule in rules.list_rules(session))
        destinations = session.scalars(select(Peer.name).where(Peer.is_destination).order_by(Peer.name)).all()
        models = session.scalars(select(ModelVersion.name).distinct().order_by(ModelVersion.name)).all()
    rule, study = query.text("rule", length=64), query.text("study", length=32)
    said: tuple[SaidRow, ...] = ()
    would = problem = ""
    if study:
        try:
            outcome = tryout.on_study(desk.zone, studies.find_one(desk.zone, study), rule or None)
            said = tuple(SaidRow(one.rule, one.matched, one.why) for one in outcome.explanation)
            would = rule_form.outcome_words(outcome)
        except (RuleError, studies.StudyError) as error:
            problem = str(error)
    return RulesView(
        rows=rows,
        rule=rule,
        study=study,
        said=said,
        would=would,
        problem=problem,
        destinations=tuple(destinations),
        models=tuple(models),
        can_manage=Right.MANAGE_PEERS in viewer.rights,
    )


def _row(rule: Rule, matched: Counter[str]) -> RuleRow:
    try:
        conditions.check(rule.condition)
        actions.check(rule.action)
        words, does = conditions.describe(rule.condition), actions.describe(rule.action)
        condition, action = rule.condition, rule.action
    except RuleError as error:
        words, does = f"cannot be evaluated: {error}", ""
        condition, action = {}, {}
    return RuleRow(
        id=rule.id,
        name=rule.name,
        enabled=rule.enabled,
        condition=condition,
        action=action,
        condition_words=words,
        action_words=does,
        matches=matched[rule.name],
    )


def _matches(session: Session) -> Counter[str]:
    """Count the revisions of the last days that each rule matched."""
    since = now() - timedelta(days=MATCHED_DAYS)
    outcomes = session.scalars(
        select(StudyRevision.rule_outcome)
        .join(Study, Study.id == StudyRevision.study_id)
        .where(Study.last_received_at >= since, StudyRevision.assembled_at >= since)
        .limit(MAX_REVISIONS)
    )
    return Counter(name for outcome in outcomes for name in outcome.get("rules", ()))


def draw(view: RulesView, viewer: Viewer) -> Drawing:
    """Draw the list, the try-out and the dialogs."""
    del viewer
    adding = opener("add-rule", "Add rule", style="primary") if view.can_manage else None
    lead = "Asked once for every study that is assembled. All that match apply together."
    drawing = {
        "head": page_head("Rules", adding, lead=lead),
        "rules": card("Rules", _table(view)),
        "try": card("Try", _try(view)),
    }
    if view.can_manage:
        drawing["upload"] = card("Try on a file", rule_form.upload(view.rule))
        drawing["dialogs"] = el("div", _adding(view), (_editing(row, view) for row in view.rows))
    return drawing


def _table(view: RulesView) -> Markup:
    columns = (
        Column("Rule", "tight"),
        Column("If", "wide"),
        Column("Then"),
        Column("Matched, 7 days", "number"),
        Column("State", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            row.name,
            row.condition_words,
            row.action_words,
            row.matches,
            badge("enabled" if row.enabled else "disabled"),
            _buttons(row) if view.can_manage else None,
        )
        for row in view.rows
    ]
    empty = nothing("There is no rule.", "Without one, studies are received and nothing else is done.")
    return table("Rules", columns, rows, empty=empty)


def _buttons(row: RuleRow) -> Markup:
    switch = ("disable", "Disable") if row.enabled else ("enable", "Enable")
    ask = Ask(f"Remove the rule {row.name}?")
    return el(
        "div",
        button("up", "↑", described=f"move up {row.name}", name=row.name),
        button("down", "↓", described=f"move down {row.name}", name=row.name),
        button(*switch, described=row.name, name=row.name),
        opener(f"edit-{row.id}", "Edit"),
        button("remove", "Remove", described=row.name, ask=ask, style="danger", name=row.name),
        class_="buttons",
    )


def _try(view: RulesView) -> Markup:
    names = [("", "All that are enabled"), *((row.name, row.name) for row in view.rows)]
    form = el(
        "form",
        select_field("rule", "Rule", names, view.rule, prefix=""),
        text_field("study", "Study: row id, or its beginning", value=view.study, prefix="", required=False),
        el("button", "Try", type="submit", class_="button"),
        method="get",
        action="/rules",
        class_="filters",
    )
    if view.problem:
        return stack(form, notice("bad", f"Not tried: {view.problem}."))
    if not view.said:
        return stack(form, el("p", "Nothing is done: it only says what would be, and why.", class_="muted"))
    columns = (Column("Rule", "tight"), Column("", "tight"), Column("Because", "wide"))
    rows = [
        (row.rule, badge("well", text="matches") if row.matched else badge("idle", text="no match"), row.why)
        for row in view.said
    ]
    return stack(form, el("p", f"The study would get: {view.would}."), table("Try-out", columns, rows))


def _adding(view: RulesView) -> Markup:
    return dialog(
        "add-rule",
        "Add rule",
        "add",
        rule_form.simple(),
        rule_form.action_fields({"inference": True}, view.destinations, view.models),
        submit="Add rule",
        lead="Empty fields ask for nothing. It is disabled at first: try it, then enable it.",
    )


def _editing(row: RuleRow, view: RulesView) -> Markup:
    return dialog(
        f"edit-{row.id}",
        f"Edit {row.name}",
        "change",
        rule_form.condition_field(row.condition),
        rule_form.action_fields(row.action, view.destinations, view.models),
        rule_form.trying(),
        submit="Save",
        name=row.name,
    )


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Add a rule, switched off."""
    name = fields.get("name", "").strip()

    def run(session: Session) -> None:
        change = rules.RuleChange(
            rule_form.simple_condition(fields), rule_form.action_of(fields), enabled=False
        )
        rules.add_rule(session, desk.zone.ledger, name, change, actor=viewer.user_id)

    _do(desk, run)
    return f"{name} added, disabled. Try it, then enable it."


def change(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Replace a rule's condition and action."""
    name = fields.get("name", "")

    def run(session: Session) -> None:
        changed = rules.RuleChange(rule_form.condition_of(fields), rule_form.action_of(fields), whole=True)
        rules.change_rule(session, desk.zone.ledger, name, changed, actor=viewer.user_id)

    _do(desk, run)
    return f"{name} saved. Studies that come from now on are asked so."


def try_unsaved(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Say what a rule would do as it stands in the form, with a stored study."""
    del viewer
    try:
        rule = tryout.unsaved(rule_form.condition_of(fields), rule_form.action_of(fields))
        study_id = studies.find_one(desk.zone, fields.get("study", "").strip())
        outcome = tryout.on_study(desk.zone, study_id, rule)
    except (RuleError, studies.StudyError) as error:
        raise ActionRefusedError(f"Not tried: {error}.") from error
    return f"{outcome.explanation[0].text}. The study would get: {rule_form.outcome_words(outcome)}."


def _switch(*, enabled: bool) -> Action:
    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        name, changed = fields.get("name", ""), rules.RuleChange(enabled=enabled)
        _do(
            desk,
            lambda session: rules.change_rule(session, desk.zone.ledger, name, changed, actor=viewer.user_id),
        )
        return f"{name} {'enabled' if enabled else 'disabled'}."

    return Action(Right.MANAGE_PEERS, run)


def _move(by: int) -> Action:
    def run(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
        name = fields.get("name", "")
        _do(desk, lambda session: rules.move_rule(session, desk.zone.ledger, name, by, actor=viewer.user_id))
        return f"{name} moved."

    return Action(Right.MANAGE_PEERS, run)


def remove(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Remove a rule."""
    name = fields.get("name", "")
    _do(desk, lambda session: rules.remove_rule(session, desk.zone.ledger, name, actor=viewer.user_id))
    return f"{name} removed."


def _do(desk: Desk, run: Callable[[Session], object]) -> None:
    try:
        with writing(desk.zone.engine) as session:
            run(session)
    except RuleError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error


PAGE: Final = Page(
    path="/rules",
    title="Rules",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "add": Action(Right.MANAGE_PEERS, add),
        "change": Action(Right.MANAGE_PEERS, change),
        "try": Action(Right.MANAGE_PEERS, try_unsaved),
        "enable": _switch(enabled=True),
        "disable": _switch(enabled=False),
        "up": _move(-1),
        "down": _move(1),
        "remove": Action(Right.MANAGE_PEERS, remove),
    },
    refresh_s=10.0,
)
