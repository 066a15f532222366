"""One peer: whether it can be reached, what it may do, and the form that changes it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance import schedules
from appliance.auth.rights import Right
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.web.panel import peer_form
from appliance.web.panel.markup import DASH, duration, el, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import (
    Ask,
    badge,
    button,
    card,
    dialog,
    facts,
    link,
    opener,
    page_head,
    text_field,
    url,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer

_TONES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"ok": ("ok", "well"), "warning": ("warn", "look"), "failed": ("bad", "failed")}
)


@dataclass(frozen=True)
class StepRow:
    """One step of the last test."""

    title: str
    state: str
    seen: str
    advice: tuple[tuple[str, str], ...]  # side, text
    took_s: float


@dataclass(frozen=True)
class PeerView:
    """A peer, all its fields, and its last test."""

    id: str
    values: Mapping[str, Any]  # field of a peer -> value
    enabled: bool
    last_seen_at: datetime | None
    created_at: datetime
    secret_stored: bool
    tested_at: datetime | None
    test_ok: bool
    steps: tuple[StepRow, ...]
    can_manage: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> PeerView:
    """Read one peer."""
    from appliance import secrets  # noqa: PLC0415 - loaded with the first peer
    from appliance.peer_values import FIELDS  # noqa: PLC0415

    with reading(desk.zone.engine) as session:
        peer = session.get(Peer, query.text("peer_id"))
    if peer is None:
        raise NotThereError("peer: no such row")
    report = desk.peer_reports.of(peer.id)
    return PeerView(
        id=peer.id,
        values={field: getattr(peer, field) for field in FIELDS},
        enabled=peer.enabled,
        last_seen_at=peer.last_seen_at,
        created_at=peer.created_at,
        secret_stored=bool(peer.credential) and secrets.exists(desk.zone, peer.credential),
        tested_at=report.at if report else None,
        test_ok=report.ok if report else False,
        steps=_rows(report) if report else (),
        can_manage=Right.MANAGE_PEERS in viewer.rights,
    )


def _rows(report: Any) -> tuple[StepRow, ...]:
    from appliance.peer_tests import TITLES  # noqa: PLC0415 - as above

    return tuple(
        StepRow(
            TITLES.get(step.name, step.name),
            str(step.state),
            step.seen,
            tuple((str(advice.side), advice.text) for advice in step.advice),
            step.took_s,
        )
        for step in report.steps
    )


def draw(view: PeerView, viewer: Viewer) -> Drawing:
    """Draw the peer."""
    del viewer
    name = str(view.values["name"])
    drawing = {
        "head": page_head(
            name,
            _buttons(view, name) if view.can_manage else None,
            marks=badge("enabled" if view.enabled else "disabled"),
            lead=_lead(view),
            back=("/peers", "Peers"),
        ),
        "test": _test(view),
    }
    if view.can_manage:
        drawing["form"] = peer_form.draw(view.id, view.values, secret_stored=view.secret_stored)
        if view.values["credential"]:
            drawing["secret"] = _secret_dialog(view, name)
    else:
        drawing["facts"] = card("Settings", facts(_facts(view)))
    return drawing


def _lead(view: PeerView) -> Markup:
    seen = when(view.last_seen_at) if view.last_seen_at else "never"
    sent = link(url("/sources", ae_title=view.values["ae_title"]), "What it sent")
    return el("span", "Last call from it: ", seen, ". Known since ", when(view.created_at), ". ", sent, ".")


def _buttons(view: PeerView, name: str) -> Markup:
    shown = [button("test", "Test", described=name, style="primary", id=view.id)]
    if view.values["is_destination"]:
        question = (
            f"Send one small image to {name}? It is of the patient CONNECTION^TEST, with identifiers of its"
            " own, and has to be deleted there."
        )
        shown.append(button("store", "Test with an image", described=name, ask=Ask(question), id=view.id))
    if view.values["credential"]:
        shown.append(opener("peer-secret", "Secret"))
    if view.enabled:
        ask = Ask(f"Disable {name}? It can no longer send, and nothing is delivered to it.")
        shown.append(button("disable", "Disable", described=name, ask=ask, style="danger", id=view.id))
    else:
        shown.append(button("enable", "Enable", described=name, id=view.id))
    ask = Ask(f"Remove {name}? Its settings are lost.")
    shown.append(button("remove", "Remove", described=name, ask=ask, style="danger", id=view.id))
    return el("div", shown, class_="buttons")


def _secret_dialog(view: PeerView, name: str) -> Markup:
    field = text_field(
        "secret",
        "Bearer token, or user:password",
        kind="password",
        hint="It is kept in a file of this node alone, in place of an older one, and never shown.",
        maxlength=16_384,
    )
    return dialog("peer-secret", f"Secret for {name}", "secret", field, submit="Store", id=view.id)


def _test(view: PeerView) -> Markup:
    if not view.steps:
        words = (
            "Not tested since the panel was started. A test goes from the name to the answer of each service,"
        )
        words += " and says what to change on which side."
        return card("Connection test", el("p", words, class_="muted"))
    steps = el("ol", (_step(step) for step in view.steps), class_="steps test")
    aside = el("span", "Tested ", when(view.tested_at, seconds=True))
    return card("Connection test", steps, aside=aside)


def _step(step: StepRow) -> Markup:
    tone, word = _TONES.get(step.state, ("idle", step.state))
    took = el("small", duration(step.took_s), class_="muted") if step.took_s >= 0.05 else None
    advice = (el("li", el("b", side), ": ", text) for side, text in step.advice)
    return el(
        "li",
        el("div", badge(word, tone=tone, text=word)),
        el(
            "div",
            el("div", el("b", step.title), took, class_="line"),
            el("div", step.seen, class_="seen"),
            el("ul", advice, class_="advice") if step.advice else None,
        ),
    )


def _facts(view: PeerView) -> list[tuple[str, object]]:
    values = view.values
    uses = [text for name, text in peer_form.USES if values[name]]
    rows: list[tuple[str, object]] = [
        ("AE title", values["ae_title"] or DASH),
        ("Address", values["host"]),
        ("Port", values["port"] or DASH),
        ("It may", "; ".join(uses)),
        ("URL", values["url"] or DASH),
        ("TLS", "required" if values["tls"] else "no"),
        ("Certificate", values["certificate_sha256"] or DASH),
        ("Sent to", schedules.text_of(values["schedule"])),
    ]
    return rows


def change(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Store the form."""
    from appliance import peers  # noqa: PLC0415 - loaded with the first change

    with writing(desk.zone.engine) as session:
        peer = _found(session, fields)
        try:
            changes = peer_form.changes_of(fields)
            changed = peers.change_peer(
                session, desk.zone.ledger, name=peer.name, changes=changes, actor=viewer.user_id
            )
        except (peers.PeerError, ValueError) as error:
            session.rollback()
            raise ActionRefusedError(f"Not saved: {error}.") from error
        return f"{changed.name} saved."


def store_secret(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Store what a peer wants to hear before it serves us; the ledger says who did, not what."""
    from appliance import peers, secrets  # noqa: PLC0415 - as above

    with writing(desk.zone.engine) as session:
        peer = _found(session, fields)
        if not peer.credential:
            raise ActionRefusedError("Not stored: give the secret a name first, under Settings.")
        try:
            secrets.write(desk.zone, peer.credential, fields.get("secret", "").encode())
        except secrets.SecretError as error:
            raise ActionRefusedError(f"Not stored: {error}.") from error
        peers.note_secret(session, desk.zone.ledger, peer, actor=viewer.user_id)
        return f"Secret for {peer.name} stored."


def remove(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Forget a peer."""
    from appliance import peers  # noqa: PLC0415 - as above

    with writing(desk.zone.engine) as session:
        name = _found(session, fields).name
        try:
            peers.remove_peer(session, desk.zone.ledger, name=name, actor=viewer.user_id)
        except peers.PeerError as error:
            raise ActionRefusedError(f"Not removed: {error}.") from error
    return f"{name} removed."


def enable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Let a peer take part again."""
    return _switch(desk, viewer, fields, enabled=True)


def disable(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Shut a peer out without forgetting it."""
    return _switch(desk, viewer, fields, enabled=False)


def _switch(desk: Desk, viewer: Viewer, fields: Mapping[str, str], *, enabled: bool) -> str:
    from appliance import peers  # noqa: PLC0415 - as above

    with writing(desk.zone.engine) as session:
        name = _found(session, fields).name
        peers.set_enabled(session, desk.zone.ledger, name=name, enabled=enabled, actor=viewer.user_id)
    return f"{name} {'enabled' if enabled else 'disabled'}."


def test_connection(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Test a peer; nothing is stored there."""
    return _examine(desk, viewer, fields, store=False)


def test_storing(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Test a peer with an instance that is stored there."""
    return _examine(desk, viewer, fields, store=True)


def _examine(desk: Desk, viewer: Viewer, fields: Mapping[str, str], *, store: bool) -> str:
    from appliance import peer_tests  # noqa: PLC0415 - as above

    with reading(desk.zone.engine) as session:
        name = _found(session, fields).name
    try:
        report = peer_tests.examine(desk.zone, name, store=store, actor=viewer.user_id)
    except peer_tests.PeerTestError as error:
        raise ActionRefusedError(f"Not tested: {error}.") from error
    desk.peer_reports.keep(report)
    if not report.ok:
        raise ActionRefusedError(f"{name}: {report.summary}.")
    return f"{name}: {report.summary}."


def _found(session: Any, fields: Mapping[str, str]) -> Peer:
    peer: Peer | None = session.get(Peer, fields.get("id", "") or fields.get("peer_id", ""))
    if peer is None:
        raise ActionRefusedError("This peer is gone.")
    return peer


ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        "change": Action(Right.MANAGE_PEERS, change),
        "secret": Action(Right.MANAGE_PEERS, store_secret),
        "remove": Action(Right.MANAGE_PEERS, remove),
        "enable": Action(Right.MANAGE_PEERS, enable),
        "disable": Action(Right.MANAGE_PEERS, disable),
        "test": Action(Right.MANAGE_PEERS, test_connection),
        "store": Action(Right.MANAGE_PEERS, test_storing),
    }
)
PAGE: Final = Page(
    path="/peers/{peer_id}",
    title="Peer",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions=ACTIONS,
    menu="/peers",
)
