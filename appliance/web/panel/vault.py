"""Vault: who is behind a pseudonym, told once to a person who may ask; who asked before; its keys."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import reidentification, vault
from appliance.auth.rights import Right
from appliance.db.engine import reading
from appliance.db.people import User
from appliance.keys import KeyFileError
from appliance.purposes import WORDS, Purpose
from appliance.reidentification import REASON_LENGTHS, Question, ReidentificationError
from appliance.vault import VaultError, VaultState
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query, Told
from appliance.web.panel.parts import (
    Column,
    badge,
    card,
    facts,
    grid,
    link,
    nothing,
    notice,
    page_head,
    select_field,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

SHOWN: Final = 100
PSEUDONYM_LENGTH: Final = 64
_ROLES: Final[Mapping[str, str]] = MappingProxyType(
    {"current": "in use", "following": "follows, in a rotation", "missing": "not here"}
)


@dataclass(frozen=True)
class VaultView:
    """The state of the vault, and what was asked of it."""

    state: VaultState | None  # None: the keys cannot be read
    questions: tuple[Question, ...]
    people: Mapping[str, str]
    may_ask: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> VaultView:
    """Read the vault's state and the newest questions."""
    del query
    try:
        state = vault.state(desk.zone)
    except KeyFileError:
        state = None
    with reading(desk.zone.engine) as session:
        questions = tuple(reidentification.questions(session, SHOWN))
        asked_by = {question.user_id for question in questions}
        people = {user.id: user.name for user in session.scalars(select(User).where(User.id.in_(asked_by)))}
    return VaultView(state, questions, people, Right.REIDENTIFY in viewer.rights)


def draw(view: VaultView, viewer: Viewer) -> Drawing:
    """Draw the form, which never changes while the page is open, and below it what does."""
    del viewer
    lead = (
        "Who is behind a pseudonym is sealed here. It is told to who may ask, for a reason, recorded first."
    )
    state = _state(view.state) if view.state else notice("bad", _KEYS_UNREADABLE)
    return {
        "head": page_head("Vault", lead=lead),
        "ask": _form() if view.may_ask else _no_right(),
        "body": grid(
            card("Asked before", _table(view), aside=_older(view)), card("State", state), class_="wide-left"
        ),
    }


_KEYS_UNREADABLE: Final = (
    "The vault's key cannot be read: nothing can be sealed or opened. `cloister doctor` says more."
)


def _no_right() -> Markup:
    return card(
        "Re-identify",
        el("p", "Asking needs the right to re-identify a pseudonym; an attempt is recorded.", class_="muted"),
    )


def _form() -> Markup:
    low, high = REASON_LENGTHS.start, REASON_LENGTHS.stop - 1
    fields = (
        text_field("pseudonym", "Pseudonym", maxlength=PSEUDONYM_LENGTH, spellcheck="false"),
        select_field("purpose", "Purpose", [(one.value, WORDS[one]) for one in Purpose]),
        text_field(
            "reason",
            "Reason",
            minlength=low,
            maxlength=high,
            hint=f"{low} to {high} characters. The ledger keeps a commitment to it, not the text.",
        ),
        el("button", "Re-identify", type="submit", class_="button primary"),
    )
    form = el("form", *fields, class_="ask", data_tell="/api/v1/vault/actions/reidentify")
    answer = el("div", "", id="told", role="status", aria_live="polite")
    return card("Re-identify", form, _confirmation(), answer)


def _confirmation() -> Markup:
    buttons = el(
        "div",
        el("button", "Cancel", type="button", class_="button", data_closes="tell"),
        el("button", "Tell me", type="submit", class_="button primary"),
        class_="buttons",
    )
    question = (
        "Ask who this is? Your name, the purpose and the time go into the ledger before you are told."
        " The answer is shown once and kept nowhere."
    )
    form = el("form", el("p", question, id="tell-question"), buttons, id="tell-form")
    return el("dialog", form, id="tell", aria_labelledby="tell-question")


def _table(view: VaultView) -> Markup:
    columns = (
        Column("When", "tight"),
        Column("By", "tight"),
        Column("What for", "wide"),
        Column("Answer", "tight"),
    )
    rows = [
        (
            when(question.at, seconds=True),
            view.people.get(question.user_id, DASH),
            _purpose(question),
            _answer(question),
        )
        for question in view.questions
    ]
    empty = nothing("Nobody has asked yet.", "Each question stands here, and refused ones too.")
    return table("Questions to the vault", columns, rows, empty=empty)


def _older(view: VaultView) -> Markup | None:
    return link("/ledger", "Older ones in the ledger") if len(view.questions) == SHOWN else None


def _purpose(question: Question) -> str:
    if question.kind == reidentification.EXPORTED:
        return "Export for a trusted third party"
    known = {one.value: words for one, words in WORDS.items()}
    return known.get(question.purpose, DASH)


def _answer(question: Question) -> Markup:
    if question.kind == reidentification.REFUSED:
        return badge("refused", text="refused: no right")
    if question.kind == reidentification.EXPORTED:
        return badge("exported", tone="info", text=count(question.found, "entry", "entries"))
    if not question.found:
        return badge("unknown", tone="idle", text="no such pseudonym")
    return badge("told", tone="info", text=f"told: {count(question.found, 'identity', 'identities')}")


def _state(state: VaultState) -> Markup:
    keys = [
        stack(
            el("code", use.name),
            el("small", f"{_ROLES[use.role]}; seals {count(use.entries, 'entry', 'entries')}"),
        )
        for use in state.keys
    ]
    rows: list[tuple[str, object]] = [
        ("Pseudonyms", count(state.entries, "entry", "entries")),
        ("Projects", state.projects),
        ("Keys", keys),
        ("Last rotation", when(state.rotated_at) if state.rotated_at else "none yet"),
    ]
    missing = any(use.role == "missing" for use in state.keys)
    lost = notice("bad", "Entries are sealed with a key that is not here; they cannot be opened.")
    return el("div", facts(rows), lost if missing else None)


def reidentify(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> Told:
    """Tell who is behind a pseudonym, recorded first."""
    purposes = {one.value: one for one in Purpose}
    purpose = purposes.get(fields.get("purpose", ""))
    if purpose is None:
        raise ActionRefusedError(f"Not told: purpose: expected one of {', '.join(purposes)}.")
    pseudonym = fields.get("pseudonym", "").strip()
    if not pseudonym or len(pseudonym) > PSEUDONYM_LENGTH:
        raise ActionRefusedError(f"Not told: pseudonym: expected 1 to {PSEUDONYM_LENGTH} characters.")
    try:
        found = reidentification.reidentify(
            desk.zone, viewer, pseudonym, fields.get("reason", "").strip(), purpose
        )
    except (ReidentificationError, VaultError, KeyFileError) as error:
        raise ActionRefusedError(f"Not told: {error}.") from error
    told = [{"project": one.project, "patient_id": one.patient_id, "issuer": one.issuer} for one in found]
    return Told("Told; recorded in the ledger.", {"found": told})


def _refused(desk: Desk, viewer: Viewer) -> None:
    reidentification.record_refusal(desk.zone, viewer)


PAGE: Final = Page(
    path="/vault",
    title="Vault",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"reidentify": Action(Right.REIDENTIFY, reidentify, refused=_refused)},
    scripts=("vault.js",),
    refresh_s=4.0,
)
