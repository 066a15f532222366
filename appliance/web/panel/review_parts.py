"""How the page of one quarantined item is drawn: pictures and headers side by side, and the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anonymizer import verdicts
from appliance.db.clinical import DecisionState
from appliance.review import decisions
from appliance.web.panel import standing, study_rows
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.parts import (
    FIELD,
    Ask,
    Column,
    badge,
    button,
    card,
    dialog,
    facts,
    grid,
    link,
    nothing,
    notice,
    opener,
    page_head,
    select_field,
    stack,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from appliance.web.panel.page import Drawing
    from appliance.web.panel.review_view import Box, Line, Picture, ReviewView, Trial

_UNCHANGED: Final = "kept"
_SOURCES: Final = {
    "detection": "found by the text search",
    "header": "outside the regions that the header names",
    "table": "known of this machine",
    "person": "drawn by a person",
}
_CHANGES: Final = {"kept": "idle", "changed": "info", "emptied": "warn", "removed": "warn", "added": "ok"}


def draw(view: ReviewView) -> Drawing:
    """Draw the whole page."""
    return {
        "head": page_head(
            view.reason,
            marks=standing.state_of(view.resolved_at, view.resolution),
            lead=_lead(view),
            back=("/quarantine", "Quarantine"),
        ),
        "body": grid(
            el("div", _pictures(view), _header(view), class_="column"),
            el("div", _decision(view), _facts(view), class_="column"),
            class_="wide-left",
        ),
        "dialogs": el("div", _dialogs(view)),
    }


def _lead(view: ReviewView) -> str:
    if not view.decidable:
        return "None of this can be released from here: its source sends it anew, or it is discarded."
    return "Nothing leaves before a person has seen what would leave, and says so."


def _facts(view: ReviewView) -> Markup:
    rows: list[tuple[str, object]] = [
        ("Reason", el("code", view.reason_code)),
        ("Stage", view.stage),
        ("Sent by", view.calling_ae_title or DASH),
        ("Since", when(view.created_at)),
    ]
    if view.study_id:
        study = link(f"/studies/{view.study_id}", study_rows.study_name(view.study_id))
        rows.append(("Study", study))
    if view.machine is not None:
        machine = view.machine
        size = f"{machine.columns} by {machine.rows}" if machine.rows and machine.columns else DASH
        rows += [
            ("Modality", machine.modality or DASH),
            ("Made by", f"{machine.manufacturer} {machine.model}".strip() or DASH),
            ("Size", size),
        ]
    return card("Item", facts(rows))


def _pictures(view: ReviewView) -> Markup:
    trial = view.trial
    if trial is None or trial.state == decisions.WAITING:
        return card("Pictures", _not_yet(view))
    if not view.sees:
        empty = nothing("The pictures are hidden.", "They need the right to view identities and pictures.")
        return card("Pictures", empty)
    if not trial.pictures:
        return card("Pictures", nothing("There is no picture that can be shown."))
    released = trial.outcome == decisions.RELEASED
    note = "What would leave" if released else "Nothing would leave as it is drafted."
    shown = [_versus(view, trial, picture, released=released) for picture in trial.pictures]
    return card("Pictures", *shown, _legend(trial), aside=el("span", note, class_="muted"))


def _not_yet(view: ReviewView) -> Markup:
    if view.trial is not None:
        return nothing("It is being made.", "The instance is de-identified once more, as drafted.")
    if not view.decidable:
        return nothing("There is nothing to show of this.")
    return nothing("Nothing was tried out yet.", "Ask for what would leave; it is shown beside what came in.")


def _versus(view: ReviewView, trial: Trial, picture: Picture, *, released: bool) -> Markup:
    base = f"/quarantine/{view.id}/{trial.decision_id}"
    name = f"frame {picture.frame + 1}"
    before = el("img", src=f"{base}/before-{picture.frame}.png?{trial.number}", alt=f"As received, {name}")
    boxes = [_box(box, trial) for box in picture.boxes]
    first = el(
        "figure",
        el(
            "div",
            before,
            boxes,
            class_="sheet",
            data_draws="boxes" if view.is_open and view.can_review else None,
            data_columns=trial.columns,
            data_rows=trial.rows,
        ),
        el("figcaption", f"As received, {name}"),
    )
    if not released:
        return el("div", first, class_="versus")
    after = el(
        "img", src=f"{base}/after-{picture.frame}.png?{trial.number}", alt=f"As it would leave, {name}"
    )
    second = el("figure", el("div", after, class_="sheet"), el("figcaption", f"As it would leave, {name}"))
    return el("div", first, second, class_="versus")


def _box(box: Box, trial: Trial) -> Markup:
    left, top, right, bottom, source = box
    across, down = 100 / max(trial.columns, 1), 100 / max(trial.rows, 1)
    style = (
        f"left:{left * across:.3f}%;top:{top * down:.3f}%;"
        f"width:{(right - left) * across:.3f}%;height:{(bottom - top) * down:.3f}%"
    )
    return el("span", class_=f"box {source}", style=style, title=_SOURCES.get(source, source))


def _legend(trial: Trial) -> Markup | None:
    sources = dict.fromkeys(box[4] for picture in trial.pictures for box in picture.boxes)
    if not sources:
        return None
    return el(
        "p",
        (
            el("span", el("i", class_=f"box {source}"), _SOURCES.get(source, source))
            for source in sorted(sources)
        ),
        class_="legend",
    )


def _header(view: ReviewView) -> Markup | None:
    if view.trial is None or view.trial.outcome != decisions.RELEASED:
        return None
    counts = ", ".join(f"{number} {change}" for change, number in sorted(view.trial.changes.items()))
    changed = [line for line in view.lines if line.change != _UNCHANGED]
    kept = [line for line in view.lines if line.change == _UNCHANGED]
    hidden = None if view.sees else el("p", "Values are hidden: they need the right to view identities.")
    more = view.trial.line_count - len(view.lines)
    return card(
        "Header",
        hidden,
        _lines("Attributes that change", changed, view),
        el(
            "details",
            el("summary", f"{count(len(kept), 'attribute')} kept as received"),
            _lines("Attributes that are kept", kept, view),
            id="kept-lines",
        ),
        el("p", f"{more} more are not shown.", class_="muted") if more > 0 else None,
        aside=el("span", counts, class_="muted"),
    )


def _lines(caption: str, lines: Sequence[Line], view: ReviewView) -> Markup:
    columns = [Column("Attribute", "wide"), Column("Change", "tight")]
    if view.sees:
        columns += [Column("As received", "wide"), Column("As it would leave", "wide")]
    rows = []
    for line in lines:
        words: list[object] = [
            stack(line.keyword, el("small", line.path)),
            badge(line.change, tone=_CHANGES.get(line.change, "idle")),
        ]
        if view.sees:
            words += [el("span", text or DASH, class_="value") for text in (line.before, line.after)]
        rows.append(tuple(words))
    return table(caption, columns, rows, empty=nothing("None."))


def _decision(view: ReviewView) -> Markup | None:
    if not view.decidable or not view.can_review:
        return None
    trial = view.trial
    if trial is not None and trial.decision_state == DecisionState.PROPOSED:
        return card("Decision", _second(view, trial))
    if not view.is_open:
        return None
    parts: list[object] = []
    if trial is not None and trial.outcome == decisions.RELEASED and trial.state == decisions.DONE:
        words = "It would leave as shown." if view.sees else "It would leave. Who sees it can release it."
        parts.append(notice("ok", words))
    elif trial is not None and trial.reason:
        parts.append(notice("warn", f"It would not leave: {trial.reason} ({trial.reason_code or 'failed'})."))
    parts.append(_form(view))
    parts.append(
        el(
            "div",
            opener("release", "Release …", style="primary") if _may_release(view) else None,
            opener("keep", "Keep inside …"),
            class_="buttons",
        )
    )
    return card("Decision", *parts)


def _may_release(view: ReviewView) -> bool:
    trial = view.trial
    shown = trial is not None and trial.state == decisions.DONE and trial.outcome == decisions.RELEASED
    return shown and view.sees and view.is_open


def _second(view: ReviewView, trial: Trial) -> Markup:
    words = (
        f"{trial.proposed_by or 'Somebody'} proposes to release it, for {_scope_words(view)[trial.scope]}."
    )
    confirm = Ask("Confirm this release? You have seen what would leave.")
    buttons = [
        button("confirm", "Confirm", ask=confirm, style="primary", decision_id=trial.decision_id)
        if not trial.own and view.sees
        else None,
        button("refuse", "Take back" if trial.own else "Turn down", decision_id=trial.decision_id),
    ]
    note = el("p", "A second person confirms it.", class_="muted") if trial.own else None
    return stack(el("p", words), note, el("div", buttons, class_="buttons"))


def _form(view: ReviewView) -> Markup:
    trial = view.trial
    drawn = "\n".join(" ".join(map(str, box)) for box in trial.drawn) if trial is not None else ""
    boxes = el(
        "label",
        el("span", "Black out"),
        el("textarea", drawn, name=f"{FIELD}boxes", id="boxes", rows="4", autocomplete="off"),
        el("small", "One box a line: left top right bottom, in pixels. Or draw on the picture."),
        class_="field",
    )
    places = list(trial.places) if trial is not None else []
    if trial is not None:
        places += [place for place in (*trial.removed, *trial.standing) if place not in places]
    return el(
        "form",
        el("input", type="hidden", name=f"{FIELD}item_id", value=view.id),
        boxes if view.machine is not None and view.machine.rows else None,
        (_place_field(place, trial) for place in places),
        el("div", el("button", "Show what would leave", type="submit", class_="button"), class_="buttons"),
        data_action="try",
        class_="fields-list",
        id="draft",
    )


def _place_field(place: str, trial: Trial | None) -> Markup:
    chosen = ""
    if trial is not None:
        chosen = "remove" if place in trial.removed else "stand" if place in trial.standing else ""
    options = [
        ("", "Undecided"),
        ("remove", "Remove it"),
        ("stand", "It says nothing of the patient"),
    ]
    return select_field(f"at-{verdicts.name_of(place)}", f"Found in {place}", options, chosen)


def _scope_words(view: ReviewView) -> dict[str, str]:
    series = f"all of this series ({count(view.others.series, 'other')} now)"
    machine = f"all images of this size and kind of this machine ({count(view.others.machine, 'other')} now)"
    return {"instance": "this instance", "series": series, "machine": machine}


def _dialogs(view: ReviewView) -> list[Markup]:
    if not view.decidable or not view.can_review or not view.is_open:
        return []
    scopes = [
        (name, words[0].upper() + words[1:])
        for name, words in _scope_words(view).items()
        if name != "machine" or (view.machine is not None and view.machine.named)
    ]
    found = [
        dialog(
            "keep",
            "Keep inside",
            "keep",
            select_field("scope", "For", scopes),
            lead="It is recorded as reviewed. For a series or a machine that holds from now on.",
            submit="Keep inside",
            item_id=view.id,
        )
    ]
    if _may_release(view) and view.trial is not None:
        second = " A second person has to confirm it." if view.four_eyes else ""
        lead = "It leaves for research as shown. For a series or a machine that holds from now on, too."
        found.append(
            dialog(
                "release",
                "Release",
                "release",
                select_field("scope", "For", scopes),
                lead=lead + second,
                submit="Propose" if view.four_eyes else "Release",
                decision_id=view.trial.decision_id,
                number=str(view.trial.number),
            )
        )
    return found
