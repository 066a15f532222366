"""Access tokens, on the page of users: which programs act for whom, and the end of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.auth import tokens
from appliance.auth.rights import Right, parse
from appliance.db.engine import writing
from appliance.db.people import AccessToken, User
from appliance.web.panel.markup import el, when
from appliance.web.panel.page import ActionRefusedError
from appliance.web.panel.parts import Ask, Column, badge, button, card, nothing, stack, table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class TokenRow:
    """A token; what it gives is what its user may do, too."""

    id: str
    user: str
    name: str
    rights: tuple[Right, ...]
    expired: bool
    expires_at: datetime | None
    last_used_at: datetime | None


def load(session: Session, at: datetime) -> tuple[TokenRow, ...]:
    """Read all tokens by user and name."""
    chosen = select(AccessToken, User).join(User, User.id == AccessToken.user_id)
    return tuple(
        TokenRow(
            id=token.id,
            user=user.name,
            name=token.name,
            rights=tuple(right for right in Right if right in parse(token.rights) & parse(user.rights)),
            expired=token.expires_at is not None and token.expires_at <= at,
            expires_at=token.expires_at,
            last_used_at=token.last_used_at,
        )
        for token, user in session.execute(chosen.order_by(User.name, AccessToken.name))
    )


def draw(rows: tuple[TokenRow, ...], words: Mapping[Right, str]) -> Markup:
    """Draw the tokens, with the command that makes one."""
    columns = (
        Column("Token", "tight"),
        Column("Rights", "wide"),
        Column("Expires", "tight"),
        Column("Last used", "tight"),
        Column("", "tight"),
    )
    drawn = [
        (
            stack(row.name, el("small", "for ", row.user)),
            ", ".join(words[right] for right in row.rights) or el("span", "none", class_="none"),
            _until(row),
            when(row.last_used_at) if row.last_used_at else el("span", "never", class_="none"),
            button(
                "revoke",
                "Revoke",
                described=f"{row.name} of {row.user}",
                style="danger",
                ask=Ask(f"Revoke {row.name} of {row.user}? The program that uses it is shut out at once."),
                id=row.id,
            ),
        )
        for row in rows
    ]
    command = el("code", "cloister user token create USER --name NAME")
    none = nothing("No program acts for a user.", "Make a token with ", command, ".")
    return card("Access tokens", table("Access tokens", columns, drawn, empty=none))


def _until(row: TokenRow) -> Markup:
    if row.expires_at is None:
        return el("span", "never", class_="none")
    return badge("expired", tone="idle") if row.expired else when(row.expires_at)


def revoke(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Forget a token."""
    with writing(desk.zone.engine) as session:
        token = session.get(AccessToken, fields.get("id", ""))
        if token is None:
            raise ActionRefusedError("This token is gone.")
        tokens.revoke(session, desk.zone.ledger, token, actor=viewer.user_id)
    return "Token revoked."
