"""The panel's web socket: its handshake, its end with the session, events of other sockets."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from appliance.db.base import now
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.db.people import UserSession
from appliance.web.app import SWEEP_EVERY_S
from appliance.web.sockets import SESSION_ENDED
from tests.appliance.web.panel_server import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

_CLIENT = r"'client_id': '([0-9a-f-]{36})'"
HOSTILE = ["42", "42[]", '42["event"]', '42["event",null]', '42["log",{}]', '42["ack",5]', "4"]


class Socket:
    """A socket.io client over one web socket, as a browser's page holds it (Engine.IO 4)."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.messages: list[str] = []
        self.close_code: int | None = None
        self.connection.recv(timeout=10)  # Engine.IO open
        self.connection.send("40")  # socket.io connect
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: any(m.startswith(("40", "44")) for m in self.messages), 10, "the handshake answers")

    def _read(self) -> None:
        try:
            for message in self.connection:
                if message == "2":
                    self.connection.send("3")
                self.messages.append(str(message))
        except ConnectionClosed:
            pass
        finally:
            self.close_code = self.connection.close_code

    @property
    def accepted(self) -> bool:
        return any(message.startswith("40{") for message in self.messages)

    def emit(self, event: str, content: dict[str, Any]) -> None:
        self.connection.send(f"42{json.dumps([event, content])}")

    def wait_closed(self, within_s: float) -> int:
        wait_for(lambda: self.close_code is not None, within_s, "the socket is closed")
        assert self.close_code is not None
        return self.close_code


def _page(client: httpx.Client, path: str = "/") -> str:
    found = re.search(_CLIENT, client.get(path).text)
    assert found is not None
    return found[1]


@contextmanager
def _socket(
    panel: PanelServer, client_id: str, *, token: str | None, origin: str | None = "own"
) -> Iterator[Socket]:
    query = {
        "client_id": client_id,
        "next_message_id": 0,
        "implicit_handshake": "true",
        "document_id": uuid4(),
        "tab_id": uuid4(),
        "old_tab_id": "",
        "EIO": 4,
        "transport": "websocket",
    }
    url = f"{panel.url.replace('http', 'ws')}/_nicegui_ws/socket.io/?{urlencode(query)}"
    headers = {} if token is None else {"Cookie": f"cloister={token}"}
    given = panel.url if origin == "own" else origin
    with connect(url, additional_headers=headers, origin=given, open_timeout=10) as connection:  # type: ignore[arg-type]
        yield Socket(connection)


def test_a_page_of_the_same_session_is_accepted(panel: PanelServer) -> None:
    client = panel.client("viewer")
    with _socket(panel, _page(client), token=panel.token(client)) as socket:
        assert socket.accepted


@pytest.mark.parametrize("origin", ["http://evil.example", "null", None])
def test_a_socket_from_another_origin_is_refused(panel: PanelServer, origin: str | None) -> None:
    client = panel.client("viewer")
    page = _page(client)
    with pytest.raises(InvalidStatus), _socket(panel, page, token=panel.token(client), origin=origin):
        pass


@pytest.mark.parametrize("token", [None, "", "x" * 43])
def test_a_socket_without_a_session_is_refused(panel: PanelServer, token: str | None) -> None:
    page = _page(panel.client("viewer"))
    with pytest.raises(InvalidStatus), _socket(panel, page, token=token):
        pass


def test_a_socket_to_a_page_of_another_session_is_refused(panel: PanelServer) -> None:
    page = _page(panel.client("ada"))
    other = panel.client("viewer")
    with pytest.raises(InvalidStatus), _socket(panel, page, token=panel.token(other)):
        pass


def test_polling_instead_of_a_socket_is_refused(panel: PanelServer) -> None:
    answer = panel.client("ada").get("/_nicegui_ws/socket.io/", params={"EIO": 4, "transport": "polling"})
    assert answer.status_code == 403


def test_signing_out_closes_the_sockets_of_that_session_and_no_other(panel: PanelServer) -> None:
    leaving, staying = panel.client("viewer", fresh=True), panel.client("viewer")
    with (
        _socket(panel, _page(leaving), token=panel.token(leaving)) as first,
        _socket(panel, _page(leaving, "/jobs"), token=panel.token(leaving)) as second,
        _socket(panel, _page(staying), token=panel.token(staying)) as other,
    ):
        assert leaving.post("/sign-out", headers={"origin": panel.url}).status_code == 303
        assert first.wait_closed(5) == SESSION_ENDED
        assert second.wait_closed(5) == SESSION_ENDED
        assert other.close_code is None


def test_a_session_that_ends_elsewhere_closes_its_sockets(panel: PanelServer, desk: Desk) -> None:
    client = panel.client("viewer", fresh=True)
    with _socket(panel, _page(client), token=panel.token(client)) as socket:
        with writing(desk.zone.engine) as session:
            token_hash = hashlib.sha256(panel.token(client).encode()).hexdigest()
            own = UserSession.token_hash == token_hash
            assert session.execute(update(UserSession).where(own).values(expires_at=now())).rowcount == 1  # type: ignore[attr-defined]
        assert socket.wait_closed(2 * SWEEP_EVERY_S) == SESSION_ENDED


def _listener(client: httpx.Client, path: str) -> tuple[str, str]:
    """Open a page; return its id and that of its action listener."""
    text = client.get(path).text
    client_id = re.search(_CLIENT, text)
    listener = re.search(r'"listener_id":"([0-9a-f-]+)","type":"panel_action"', text)
    assert client_id is not None
    assert listener is not None
    return client_id[1], listener[1]


def _act(socket: Socket, client_id: str, listener: object, action: str, **fields: str) -> None:
    argument = json.dumps({"action": action, "fields": fields, "number": 1})
    socket.emit("event", {"id": 0, "client_id": client_id, "listener_id": listener, "args": [argument]})


def _enabled(desk: Desk, peer_id: str) -> bool:
    with reading(desk.zone.engine) as session:
        return session.get_one(Peer, peer_id).enabled


def test_an_action_over_the_socket_needs_its_right_each_time(panel: PanelServer, desk: Desk) -> None:
    peer = panel.seed.destination
    viewer, manager = panel.client("viewer"), panel.client("manage_peers")
    page, listener = _listener(viewer, "/peers")
    with _socket(panel, page, token=panel.token(viewer)) as socket:
        _act(socket, page, listener, "disable", id=peer)
        wait_for(lambda: any("do not have the right" in m for m in socket.messages), 10, "it is refused")
    assert _enabled(desk, peer)
    page, listener = _listener(manager, "/peers")
    with _socket(panel, page, token=panel.token(manager)) as socket:
        _act(socket, page, listener, "disable", id=peer)
        wait_for(lambda: not _enabled(desk, peer), 10, "it is done")
        _act(socket, page, listener, "enable", id=peer)
        wait_for(lambda: _enabled(desk, peer), 10, "it is done")


def test_an_event_for_a_page_of_another_socket_is_dropped(panel: PanelServer, desk: Desk) -> None:
    peer = panel.seed.destination
    manager, viewer = panel.client("manage_peers"), panel.client("viewer")
    page, listener = _listener(manager, "/peers")
    own = _page(viewer)
    with (
        _socket(panel, page, token=panel.token(manager)) as victim,
        _socket(panel, own, token=panel.token(viewer)) as attacker,
    ):
        _act(attacker, page, listener, "disable", id=peer)
        _act(victim, page, listener, "test", id=peer)  # answered after the other was dropped
        wait_for(lambda: any("TCP connection" in m for m in victim.messages), 20, "the own event is answered")
        assert _enabled(desk, peer)


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_frames_leave_the_process_running(panel: PanelServer, message: str) -> None:
    client = panel.client("viewer")
    with _socket(panel, _page(client), token=panel.token(client)) as socket:
        socket.connection.send(message)
    assert client.get("/session").status_code == 200


def test_what_a_browser_wants_logged_is_not_logged(panel: PanelServer) -> None:
    client = panel.client("viewer")
    page = _page(client)
    with _socket(panel, page, token=panel.token(client)) as socket:
        socket.emit("log", {"client_id": page, "level": "error", "message": "Ekman^Liv was here"})
        assert client.get("/session").status_code == 200
    assert "was here" not in panel.log


def test_a_change_in_the_database_reaches_the_open_page(panel: PanelServer, desk: Desk) -> None:
    client = panel.client("viewer")
    with _socket(panel, _page(client, "/jobs"), token=panel.token(client)) as socket:
        with writing(desk.zone.engine) as session:
            job = ClinicalJob(kind="infer", subject_id="0" * 32, dedupe_key="live", state="running")
            job.progress = {"stage": "a-stage-that-nobody-wrote-before", "done": 1, "total": 3}
            session.add(job)
        wait_for(
            lambda: any("a-stage-that-nobody" in m for m in socket.messages), 15, "the page is refreshed"
        )
