"""Users: who may sign in and what each may do."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance.auth import ROLES, PasswordError, UserError, users
from appliance.auth.passwords import MIN_LENGTH
from appliance.auth.rights import Right, parse
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.people import User, UserSession
from appliance.web.panel import access_tokens
from appliance.web.panel.markup import DASH, count, el, join, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    check_field,
    dialog,
    opener,
    page_head,
    select_field,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

RIGHT_WORDS: Final[Mapping[Right, str]] = MappingProxyType(
    {
        Right.VIEW: "See states, counts and reasons",
        Right.VIEW_IDENTITY: "See patients' names, identifiers and pictures",
        Right.REVIEW_QUARANTINE: "Review quarantine",
        Right.MANAGE_PEERS: "Manage peers and rules",
        Right.MANAGE_RETENTION: "Manage retention and holds",
        Right.MANAGE_USERS: "Manage users",
        Right.APPROVE_MODEL: "Decide on models",
        Right.APPROVE_PROTOCOL: "Decide on federation protocols",
        Right.RETRY_JOBS: "Retry jobs",
        Right.REIDENTIFY: "Re-identify a pseudonym",
        Right.FETCH_STUDIES: "Query archives and fetch studies",
        Right.STORE_STUDIES: "Send studies over the web",
    }
)


@dataclass(frozen=True)
class UserRow:
    """A person who may sign in."""

    id: str
    name: str
    enabled: bool
    locked_until: datetime | None
    rights: tuple[Right, ...]
    sessions: int
    created_at: datetime


@dataclass(frozen=True)
class UsersView:
    """All users."""

    rows: tuple[UserRow, ...]
    self_id: str
    tokens: tuple[access_tokens.TokenRow, ...] = ()


def load(desk: Desk, viewer: Viewer, query: Query) -> UsersView:
    """Read all users by name."""
    del query
    at = now()
    with reading(desk.zone.engine) as session:
        signed_in = {
            str(id_): int(number)
            for id_, number in session.execute(
                select(UserSession.user_id, func.count())
                .where(UserSession.expires_at > at)
                .group_by(UserSession.user_id)
            )
        }
        rows = tuple(
            UserRow(
                id=user.id,
                name=user.name,
                enabled=user.enabled,
                locked_until=user.locked_until if user.locked_until and user.locked_until > at else None,
                rights=tuple(right for right in Right if right in parse(user.rights)),
                sessions=signed_in.get(user.id, 0),
                created_at=user.created_at,
            )
            for user in users.list_users(session)
        )
        tokens = access_tokens.load(session, at)
    return UsersView(rows=rows, self_id=viewer.user_id, tokens=tokens)


def draw(view: UsersView, viewer: Viewer) -> Drawing:
    """Draw the list and its dialogs."""
    del viewer
    return {
        "head": page_head(
            "Users",
            opener("add-user", "Add user", style="primary"),
            lead="Nothing is allowed that is not granted here.",
        ),
        "list": el("div", _table(view), class_="alone"),
        "tokens": access_tokens.draw(view.tokens, RIGHT_WORDS),
        "dialogs": join((_add_dialog(), *(_edit_dialogs(row) for row in view.rows))),
    }


def _table(view: UsersView) -> Markup:
    columns = (
        Column("Name", "tight"),
        Column("State", "tight"),
        Column("Rights", "wide"),
        Column("Signed in", "tight"),
        Column("Since", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            stack(row.name, el("small", "you") if row.id == view.self_id else None),
            _state(row),
            _rights(row.rights),
            count(row.sessions, "session") if row.sessions else el("span", DASH, class_="none"),
            when(row.created_at),
            _buttons(row, is_self=row.id == view.self_id),
        )
        for row in view.rows
    ]
    return table("Users", columns, rows)


def _state(row: UserRow) -> Markup:
    if row.locked_until is not None:
        return stack(badge("locked"), el("small", "until ", when(row.locked_until)))
    return badge("enabled" if row.enabled else "disabled")


def _rights(rights: tuple[Right, ...]) -> Markup | str:
    if set(rights) == set(Right):
        return "Everything"
    return ", ".join(RIGHT_WORDS[right] for right in rights) or el("span", "none", class_="none")


def _buttons(row: UserRow, *, is_self: bool) -> Markup:
    shown = [opener(f"rights-{row.id}", "Rights"), opener(f"password-{row.id}", "Password")]
    if not is_self:
        if row.enabled:
            ask = Ask(f"Disable {row.name}? All open sessions end at once.")
            shown.append(button("disable", "Disable", described=row.name, style="danger", ask=ask, id=row.id))
        else:
            shown.append(button("enable", "Enable", described=row.name, id=row.id))
    return el("div", shown, class_="buttons")


def _add_dialog() -> Markup:
    roles = [("", "No rights yet"), *((name, name.capitalize()) for name in ROLES)]
    return dialog(
        "add-user",
        "Add user",
        "add",
        text_field("name", "Name", hint="Lower-case letters, digits, dots and hyphens.", maxlength=64),
        text_field(
            "password",
            "First password",
            kind="password",
            hint=f"At least {MIN_LENGTH} characters; hand it over in person.",
            minlength=MIN_LENGTH,
        ),
        select_field("role", "Start with the rights of", roles),
        submit="Add user",
    )


def _edit_dialogs(row: UserRow) -> Markup:
    boxes = [
        check_field("rights", RIGHT_WORDS[right], checked=right in row.rights, value=right.value)
        for right in Right
    ]
    rights = dialog(
        f"rights-{row.id}",
        f"Rights of {row.name}",
        "rights",
        el("fieldset", el("legend", "May"), boxes),
        submit="Save",
        lead="They hold from the next click on.",
        id=row.id,
    )
    password = dialog(
        f"password-{row.id}",
        f"New password for {row.name}",
        "password",
        text_field(
            "password",
            "New password",
            kind="password",
            hint=f"At least {MIN_LENGTH} characters.",
            minlength=MIN_LENGTH,
        ),
        submit="Set password",
        lead="All open sessions of this user end.",
        id=row.id,
    )
    return join((rights, password))


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Add a user with the rights of a role, as far as the adder has them."""
    role = ROLES.get(fields.get("role", ""), frozenset())
    _may_grant(viewer, role)
    try:
        with writing(desk.zone.engine) as session:
            users.add_user(
                session,
                desk.zone.ledger,
                name=fields.get("name", "").strip(),
                password=fields.get("password", ""),
                rights=role,
                actor=viewer.user_id,
            )
    except (UserError, PasswordError) as error:
        raise ActionRefusedError(f"Not added: {error}.") from error
    return "User added."


def _may_grant(viewer: Viewer, rights: Iterable[Right]) -> None:
    """Nobody grants what they may not do themselves."""
    if not set(rights) <= viewer.rights:
        raise ActionRefusedError("You can only grant rights that you have yourself.")


def _user(session: Session, fields: Mapping[str, str]) -> User:
    user = session.get(User, fields.get("id", ""))
    if user is None:
        raise ActionRefusedError("This user is gone.")
    return user


def change_rights(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Replace a user's rights."""
    wanted = parse(fields.get("rights", "").split(","))
    with writing(desk.zone.engine) as session:
        user = _user(session, fields)
        _may_grant(viewer, wanted ^ parse(user.rights))
        if user.id == viewer.user_id and Right.MANAGE_USERS not in wanted:
            raise ActionRefusedError("You cannot take the management of users from yourself.")
        users.set_rights(session, desk.zone.ledger, user, rights=wanted, actor=viewer.user_id)
    return "Rights changed."


def change_password(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Set a user's password, if the one who sets it has all rights of that user."""
    try:
        with writing(desk.zone.engine) as session:
            user = _user(session, fields)
            _may_grant(viewer, parse(user.rights))
            users.set_password(
                session, desk.zone.ledger, user, password=fields.get("password", ""), actor=viewer.user_id
            )
    except PasswordError as error:
        raise ActionRefusedError(f"Not changed: {error}.") from error
    return "Password changed; open sessions have ended."


def enable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a user sign in again."""
    return _switch(desk, viewer, fields, enabled=True)


def disable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Shut a user out."""
    return _switch(desk, viewer, fields, enabled=False)


def _switch(desk: Desk, viewer: Viewer, fields: Mapping[str, str], *, enabled: bool) -> str:
    with writing(desk.zone.engine) as session:
        user = _user(session, fields)
        if user.id == viewer.user_id:
            raise ActionRefusedError("You cannot do this to yourself.")
        _may_grant(viewer, parse(user.rights))
        users.set_enabled(session, desk.zone.ledger, user, enabled=enabled, actor=viewer.user_id)
    return "User enabled." if enabled else "User disabled; open sessions have ended."


PAGE: Final = Page(
    path="/users",
    title="Users",
    right=Right.MANAGE_USERS,
    load=load,
    draw=draw,
    actions={
        "add": Action(Right.MANAGE_USERS, add),
        "rights": Action(Right.MANAGE_USERS, change_rights),
        "password": Action(Right.MANAGE_USERS, change_password),
        "enable": Action(Right.MANAGE_USERS, enable),
        "disable": Action(Right.MANAGE_USERS, disable),
        "revoke": Action(Right.MANAGE_USERS, access_tokens.revoke),
    },
)
