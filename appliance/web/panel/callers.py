"""Callers that were turned away, on the page of peers."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select

from appliance.db.engine import writing
from appliance.db.peers import RejectedCaller
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.page import ActionRefusedError
from appliance.web.panel.parts import Column, button, dialog, nothing, opener, stack, table, text_field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unknown_ae_title": "no peer has this AE title",
        "wrong_address": "a peer has this AE title, at another address",
        "name_unresolved": "a peer has this AE title, its host name has no address",
        "not_ready": "the node was starting",
        "needs_tls": "its peer must come over TLS, and it came without",
        "wrong_certificate": "it showed another certificate than the one entered at its peer",
        "tls_failed": "it did not get through the TLS handshake",
        "wrong_called_ae_title": "it called another AE title than this node's",
        "too_many_associations": "the node was at its bound",
    }
)


@dataclass(frozen=True)
class CallerRow:
    """A caller that was turned away."""

    id: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    reason: str
    count: int
    last_seen_at: datetime
    tls: bool
    certificate_sha256: str
    renews: bool  # allowing it gives the peer that it belongs to the certificate that it showed
    advice: str  # why allowing it is no help; empty when it is


def rows(session: Session) -> tuple[CallerRow, ...]:
    """Return the latest callers that were turned away."""
    latest = select(RejectedCaller).order_by(RejectedCaller.last_seen_at.desc()).limit(100)
    return tuple(_caller(caller) for caller in session.scalars(latest))


def _caller(caller: RejectedCaller) -> CallerRow:
    from appliance.peers import ALLOWING_IS_NO_HELP, WRONG_CERTIFICATE  # noqa: PLC0415 - with the first caller

    renews = caller.reason == WRONG_CERTIFICATE and bool(caller.certificate_sha256)
    advice = ALLOWING_IS_NO_HELP.get(caller.reason, "")
    if caller.reason == WRONG_CERTIFICATE and not renews:
        advice = "it showed no certificate: let it show the one that is entered at its peer"
    return CallerRow(
        id=caller.id,
        calling_ae_title=caller.calling_ae_title,
        called_ae_title=caller.called_ae_title,
        address=caller.address,
        reason=_REASONS.get(caller.reason, caller.reason),
        count=caller.count,
        last_seen_at=caller.last_seen_at,
        tls=caller.tls,
        certificate_sha256=caller.certificate_sha256,
        renews=renews,
        advice=advice,
    )


def draw(callers: tuple[CallerRow, ...], *, can_manage: bool) -> Markup:
    """Draw the callers that were turned away."""
    columns = (
        Column("Caller", "tight"),
        Column("Address", "tight"),
        Column("Called", "tight"),
        Column("Why", "wide"),
        Column("Calls", "number"),
        Column("Last call", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            el("code", row.calling_ae_title or DASH),
            stack(row.address, el("small", "with TLS") if row.tls else None),
            el("code", row.called_ae_title or DASH),
            stack(row.reason, el("small", row.advice) if row.advice else None),
            row.count,
            when(row.last_seen_at),
            _caller_buttons(row) if can_manage else None,
        )
        for row in callers
    ]
    empty = nothing(
        "Nobody was turned away.", "A caller that is not known shows up here, to be allowed with one click."
    )
    return table("Callers turned away", columns, rows, empty=empty)


def _caller_buttons(row: CallerRow) -> Markup:
    who = f"{row.calling_ae_title} at {row.address}"
    allowing = None
    if not row.advice:
        label = "Take certificate" if row.renews else "Allow"
        allowing = opener(f"allow-{row.id}", label, style="primary")
    return el("div", allowing, button("forget", "Forget", described=who, id=row.id), class_="buttons")


def dialogs(callers: tuple[CallerRow, ...]) -> list[Markup]:
    """Draw a dialog for each caller that can be allowed."""
    return [_allow_dialog(row) for row in callers if not row.advice]


def _allow_dialog(row: CallerRow) -> Markup:
    who = f"{row.calling_ae_title} at {row.address}"
    shown = el("code", row.certificate_sha256, class_="whole")
    if row.renews:
        return dialog(
            f"allow-{row.id}",
            f"Take the new certificate of {row.calling_ae_title}?",
            "allow",
            submit="Take certificate",
            lead=el(
                "span",
                "It showed the certificate with this SHA-256. Compare it with the peer's own display;"
                " from then on it must show this one.",
                shown,
            ),
            id=row.id,
        )
    words = f"{who} may send studies to this node."
    if row.certificate_sha256:
        words += " It showed the certificate with this SHA-256, and must show it from now on:"
    elif row.tls:
        words += " It came over TLS, and must do so from now on."
    lead = el("span", words, shown if row.certificate_sha256 else None)
    return dialog(
        f"allow-{row.id}",
        f"Allow {row.calling_ae_title}?",
        "allow",
        text_field(
            "name",
            "Name",
            value=f"{row.calling_ae_title} {row.address.replace(':', '-')}"[:64],
            hint="What staff call it.",
            maxlength=64,
        ),
        submit="Allow",
        lead=lead,
        id=row.id,
    )


def allow(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a caller in that was turned away: as a new peer, or with the certificate that it showed."""
    from appliance import peers  # noqa: PLC0415 - loaded with the first change

    try:
        with writing(desk.zone.engine) as session:
            peer = peers.allow_caller(
                session,
                desk.zone.ledger,
                caller_id=fields.get("id", ""),
                name=fields.get("name", ""),
                actor=viewer.user_id,
            )
            return f"{peer.name} may send now."
    except peers.PeerError as error:
        raise ActionRefusedError(f"Not allowed: {error}.") from error


def forget(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Take a caller off the list until it calls again."""
    del viewer
    with writing(desk.zone.engine) as session:
        session.execute(delete(RejectedCaller).where(RejectedCaller.id == fields.get("id", "")))
    return "Off the list until it calls again."
