"""Peers: who may send, where results go, who was turned away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sqlalchemy import delete, select

from appliance.auth.rights import Right
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer, RejectedCaller
from appliance.web.panel import callers, peer
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    button,
    card,
    check_field,
    dialog,
    link,
    nothing,
    opener,
    page_head,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

_TEXTS: Final = ("name", "ae_title", "host", "protocol", "url", "credential", "certificate_sha256")
_CHECKS: Final = ("may_send", "may_query", "is_destination", "is_archive", "tls", "commitment")


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
    may_query: bool
    is_archive: bool
    protocol: str
    url: str
    tls: bool
    certificate_sha256: str
    test_ok: bool | None  # of the last test since the panel was started


@dataclass(frozen=True)
class PeersView:
    """All peers and the latest callers that were turned away."""

    peers: tuple[PeerRow, ...]
    callers: tuple[callers.CallerRow, ...]
    can_manage: bool
    ae_title: str
    port: int
    tls_port: int


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
                may_query=peer.may_query,
                is_archive=peer.is_archive,
                protocol=peer.protocol,
                url=peer.url,
                tls=peer.tls,
                certificate_sha256=peer.certificate_sha256,
                test_ok=desk.peer_reports.verdict(peer.id),
            )
            for peer in session.scalars(select(Peer).order_by(Peer.name))
        )
        turned_away = callers.rows(session)
    manages = Right.MANAGE_PEERS in viewer.rights
    dicom = desk.settings.dicom
    port = desk.dicom_port() if dicom.plain else 0
    return PeersView(peers, turned_away, manages, dicom.ae_title, port, dicom.tls_port)


def draw(view: PeersView, viewer: Viewer) -> Drawing:
    """Draw peers, callers and the dialog to add a peer."""
    del viewer
    adding = opener("add-peer", "Add peer", style="primary") if view.can_manage else None
    ports = [f"port {view.port or 'unknown'}"] if view.port or not view.tls_port else []
    ports += [f"port {view.tls_port} with TLS"] if view.tls_port else []
    lead = f"This node is {view.ae_title} on {' and '.join(ports)}. Only known callers may send."
    return {
        "head": page_head("Peers", adding, lead=lead),
        "callers": card("Turned away", callers.draw(view.callers, can_manage=view.can_manage)),
        "peers": card("Known peers", _peers(view)),
        "dialog": el("div", _dialog(), callers.dialogs(view.callers)) if view.can_manage else el("div"),
    }


def _peers(view: PeersView) -> Markup:
    columns = (
        Column("Name", "wide"),
        Column("AE title", "tight"),
        Column("Address", "tight"),
        Column("May"),
        Column("Last test", "tight"),
        Column("State", "tight"),
        Column("Last seen", "tight"),
        Column("", "tight"),
    )
    rows = [
        (
            link(f"/peers/{row.id}", row.name),
            el("code", row.ae_title or DASH),
            _address(row),
            ", ".join(_uses(row)),
            _tested(row),
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


def _address(row: PeerRow) -> Markup:
    if row.url:
        where: object = el("span", urlsplit(row.url).netloc, title=row.url)
    else:
        where = f"{row.host}:{row.port}" if row.port else row.host
    kind = "DICOMweb" if row.protocol == "dicomweb" else ""
    secure = "TLS, pinned certificate" if row.certificate_sha256 else "TLS" if row.tls else ""
    words = ", ".join(word for word in (kind, secure) if word)
    return stack(where, el("small", words) if words else None)


def _uses(row: PeerRow) -> list[str]:
    uses = (
        ("send", row.may_send),
        ("query", row.may_query),
        ("receive", row.is_destination),
        ("be fetched from", row.is_archive),
    )
    return [word for word, applies in uses if applies]


def _tested(row: PeerRow) -> Markup:
    if row.test_ok is None:
        return el("span", DASH, class_="none")
    word = "well" if row.test_ok else "failed"
    return badge(word, tone="ok" if row.test_ok else "bad", text=word)


def _buttons(row: PeerRow) -> Markup:
    return el("div", button("test", "Test", described=row.name, id=row.id), class_="buttons")


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
            check_field("may_query", "Query and retrieve what this node holds"),
            check_field("is_destination", "Receive results from this node"),
            check_field("is_archive", "Be queried and fetched from"),
        ),
        check_field("tls", "TLS alone, in both directions"),
        el("p", "Its page has the rest: DICOMweb, certificate, limits, schedule.", class_="muted"),
        submit="Add peer",
    )


def add(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Add a peer."""
    from appliance import peers  # noqa: PLC0415 - loaded with the first change

    port = fields.get("port", "").strip()
    values: dict[str, Any] = {name: fields[name] for name in _TEXTS if name in fields}
    values |= {name: name in fields for name in _CHECKS}
    values["port"] = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    new = peers.NewPeer(**{"name": "", **values})
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
    return f"{new.name.strip()} added."


PAGE: Final = Page(
    path="/peers",
    title="Peers",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "add": Action(Right.MANAGE_PEERS, add),
        "allow": Action(Right.MANAGE_PEERS, callers.allow),
        "forget": Action(Right.MANAGE_PEERS, callers.forget),
        **{name: peer.ACTIONS[name] for name in ("enable", "disable", "test")},
    },
)
