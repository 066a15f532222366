"""Peers: who may send, where results go, who was turned away."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select

from appliance.auth.rights import Right
from appliance.db.clinical import Peer, RejectedCaller
from appliance.db.engine import reading, writing
from appliance.web import echoing
from appliance.web.panel.markup import el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    check_field,
    dialog,
    nothing,
    opener,
    page_head,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup

    from appliance.peers import NewPeer
    from appliance.web.desk import Desk, Viewer

_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unknown_ae_title": "no peer has this AE title",
        "wrong_address": "a peer has this AE title, at another address",
        "name_unresolved": "a peer has this AE title, its host name has no address",
        "not_ready": "the node was starting",
    }
)


@dataclass(frozen=True)
class PeerRow:
    """A DICOM application entity that we know."""

    id: str
    name: str
    ae_title: str
    host: str
    port: int
    may_send: bool
    is_destination: bool
    enabled: bool
    last_seen_at: datetime | None


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


@dataclass(frozen=True)
class PeersView:
    """All peers and the latest callers that were turned away."""

    peers: tuple[PeerRow, ...]
    callers: tuple[CallerRow, ...]
    can_manage: bool
    ae_title: str
    port: int


def load(desk: Desk, viewer: Viewer, query: Query) -> PeersView:
    """Read peers and callers."""
    del query
    with reading(desk.zone.engine) as session:
        peers = tuple(
            PeerRow(
                id=peer.id,
                name=peer.name,
                ae_title=peer.ae_title,
                host=peer.host,
                port=peer.port,
                may_send=peer.may_send,
                is_destination=peer.is_destination,
                enabled=peer.enabled,
                last_seen_at=peer.last_seen_at,
            )
            for peer in session.scalars(select(Peer).order_by(Peer.name))
        )
        callers = tuple(
            CallerRow(
                id=caller.id,
                calling_ae_title=caller.calling_ae_title,
                called_ae_title=caller.called_ae_title,
                address=caller.address,
                reason=_REASONS.get(caller.reason, caller.reason),
                count=caller.count,
                last_seen_at=caller.last_seen_at,
            )
            for caller in session.scalars(
                select(RejectedCaller).order_by(RejectedCaller.last_seen_at.desc()).limit(100)
            )
        )
    manages = Right.MANAGE_PEERS in viewer.rights
    return PeersView(peers, callers, manages, desk.settings.dicom.ae_title, desk.dicom_port())


def draw(view: PeersView, viewer: Viewer) -> Drawing:
    """Draw peers, callers and the dialog to add a peer."""
    del viewer
    adding = opener("add-peer", "Add peer", style="primary") if view.can_manage else None
    lead = f"This node is {view.ae_title} on port {view.port or 'unknown'}. Only known callers may send."
    return {
        "head": page_head("Peers", adding, lead=lead),
        "callers": card("Turned away", _callers(view)),
        "peers": card("Known peers", _peers(view)),
        "dialog": _dialog() if view.can_manage else el("div"),
    }


def _peers(view: PeersView) -> Markup:
    columns = (
        Column("Name", "wide"),
        Column("AE title", "tight"),
        Column("Address", "tight"),
        Column("May", "tight"),
        Column("State", "tight"),
        Column("Last seen", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            row.name,
            el("code", row.ae_title),
            f"{row.host}:{row.port}" if row.port else row.host,
            " and ".join(
                word for word, applies in (("send", row.may_send), ("receive", row.is_destination)) if applies
            ),
            badge("enabled" if row.enabled else "disabled"),
            when(row.last_seen_at),
            _buttons(row) if view.can_manage else None,
        )
        for row in view.peers
    ]
    empty = nothing(
        "No peer is known yet.",
        "Add the PACS that sends, and the workstation or PACS that receives results. ",
        f"At the PACS, add {view.ae_title}.",
    )
    return table("Known peers", columns, rows, empty=empty)


def _buttons(row: PeerRow) -> Markup:
    shown = []
    if row.is_destination:
        shown.append(button("echo", "Echo", described=row.name, id=row.id))
    if row.enabled:
        ask = Ask(f"Disable {row.name}? It can no longer send, and nothing is delivered to it.")
        shown.append(button("disable", "Disable", described=row.name, ask=ask, style="danger", id=row.id))
    else:
        shown.append(button("enable", "Enable", described=row.name, id=row.id))
    return el("div", shown, class_="buttons")


def _callers(view: PeersView) -> Markup:
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
            el("code", row.calling_ae_title),
            row.address,
            el("code", row.called_ae_title),
            row.reason,
            row.count,
            when(row.last_seen_at),
            _caller_buttons(row) if view.can_manage else None,
        )
        for row in view.callers
    ]
    empty = nothing(
        "Nobody was turned away.", "A caller that is not known shows up here, to be allowed with one click."
    )
    return table("Callers turned away", columns, rows, empty=empty)


def _caller_buttons(row: CallerRow) -> Markup:
    who = f"{row.calling_ae_title} at {row.address}"
    ask = Ask(f"Allow {who} to send studies to this node?")
    return el(
        "div",
        button("allow", "Allow", described=who, ask=ask, style="primary", id=row.id),
        button("forget", "Forget", described=who, id=row.id),
        class_="buttons",
    )


def _dialog() -> Markup:
    return dialog(
        "add-peer",
        "Add peer",
        "add",
        text_field("name", "Name", hint="What staff call it, such as PACS radiology.", maxlength=64),
        text_field("ae_title", "AE title", maxlength=16),
        el(
            "div",
            text_field(
                "host", "Address", hint="For a sender a network works too: 10.1.2.0/24.", maxlength=255
            ),
            text_field("port", "Port", kind="number", required=False, min=1, max=65535, hint="To receive."),
            class_="two",
        ),
        el(
            "fieldset",
            el("legend", "It may"),
            check_field("may_send", "Send studies to this node", checked=True),
            check_field("is_destination", "Receive results from this node"),
        ),
        submit="Add peer",
    )


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Add a peer."""
    from appliance import peers  # noqa: PLC0415 - loaded with the first change

    port = fields.get("port", "").strip()
    new = peers.NewPeer(
        name=fields.get("name", ""),
        ae_title=fields.get("ae_title", ""),
        host=fields.get("host", ""),
        port=int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0,
        may_send="may_send" in fields,
        is_destination="is_destination" in fields,
    )
    _add(desk, viewer, new)
    return f"{new.name.strip()} added."


def _add(desk: Desk, viewer: Viewer, new: NewPeer) -> None:
    from appliance import peers  # noqa: PLC0415 - as above

    known = (
        RejectedCaller.calling_ae_title == new.ae_title.strip(),
        RejectedCaller.address == new.host.strip(),
    )
    try:
        with writing(desk.zone.engine) as session:
            peers.add_peer(session, desk.zone.ledger, new, actor=viewer.user_id)
            session.execute(delete(RejectedCaller).where(*known))
    except peers.PeerError as error:
        raise ActionRefusedError(f"Not added: {error}.") from error


def allow(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Make a peer of a caller that was turned away."""
    from appliance import peers  # noqa: PLC0415 - as above

    with reading(desk.zone.engine) as session:
        caller = session.get(RejectedCaller, fields.get("id", ""))
        taken = set(session.scalars(select(Peer.name)))
    if caller is None:
        raise ActionRefusedError("This caller is no longer listed.")
    base = f"{caller.calling_ae_title} {caller.address.replace(':', '-')}"
    name = next(
        name for name in (base, *(f"{base} {number}" for number in range(2, 1000))) if name not in taken
    )
    new = peers.NewPeer(name=name, ae_title=caller.calling_ae_title, host=caller.address, may_send=True)
    _add(desk, viewer, new)
    return f"{caller.calling_ae_title} may send now."


def forget(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Take a caller off the list until it calls again."""
    del viewer
    with writing(desk.zone.engine) as session:
        session.execute(delete(RejectedCaller).where(RejectedCaller.id == fields.get("id", "")))
    return "Off the list until it calls again."


def enable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a peer take part again."""
    return _switch(desk, viewer, fields, enabled=True)


def disable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Shut a peer out without forgetting it."""
    return _switch(desk, viewer, fields, enabled=False)


def _switch(desk: Desk, viewer: Viewer, fields: Mapping[str, str], *, enabled: bool) -> str:
    from appliance import peers  # noqa: PLC0415 - as above

    with writing(desk.zone.engine) as session:
        peer = session.get(Peer, fields.get("id", ""))
        if peer is None:
            raise ActionRefusedError("This peer is gone.")
        peers.set_enabled(session, desk.zone.ledger, name=peer.name, enabled=enabled, actor=viewer.user_id)
        return f"{peer.name} {'enabled' if enabled else 'disabled'}."


def echo(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Ask a peer whether it hears us (C-ECHO)."""
    del viewer
    with reading(desk.zone.engine) as session:
        peer = session.get(Peer, fields.get("id", ""))
    if peer is None:
        raise ActionRefusedError("This peer is gone.")
    try:
        took_s = echoing.echo(peer.ae_title, peer.host, peer.port, desk.settings.dicom.ae_title)
    except echoing.EchoError as error:
        raise ActionRefusedError(f"{peer.name} did not answer: {error}.") from error
    return f"{peer.name} answered in {took_s * 1000:.0f} ms."


PAGE: Final = Page(
    path="/peers",
    title="Peers",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "add": Action(Right.MANAGE_PEERS, add),
        "allow": Action(Right.MANAGE_PEERS, allow),
        "forget": Action(Right.MANAGE_PEERS, forget),
        "enable": Action(Right.MANAGE_PEERS, enable),
        "disable": Action(Right.MANAGE_PEERS, disable),
        "echo": Action(Right.MANAGE_PEERS, echo),
    },
)
