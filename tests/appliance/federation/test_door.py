"""Who gets past the coordinator's door, over real TLS."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from appliance.db.coordinator import MemberState
from appliance.db.engine import writing
from appliance.federation import authority, door, enrolment, members
from tests.appliance.federation.doorway import (
    Doorway,
    enrolment_connection,
    foreign_authority,
    key_pem,
    new_key,
    running_doorway,
    signed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = new_key()


@pytest.fixture(scope="module")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doorway]:
    with running_doorway(tmp_path_factory.mktemp("door") / "c") as running:
        yield running


@pytest.fixture
def root(doorway: Doorway) -> authority.Authority:
    return authority.load(doorway.federation.root)


def admitted(doorway: Doorway, root: authority.Authority, site: str, days: float = 30) -> bytes:
    """Make a site a member; return its certificate."""
    made = signed(root, KEY, site, days)
    assert doorway.book.ledger is not None
    with writing(doorway.book.engine) as session:
        members.admit(session, doorway.book.ledger, site, authority.described(made), None)
    return made


def reasons(doorway: Doorway) -> list[str]:
    return [
        body["reason"]
        for kind, body in ((kind, json.loads(body)) for kind, body in doorway.recorded())
        if kind == door.REFUSED
    ]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_member_passes_and_whoever_knocks_without_being_one_is_refused_and_recorded(
    doorway: Doorway, root: authority.Authority, tmp_path: Path
) -> None:
    certificate = admitted(doorway, root, "north")
    assert doorway.passes(certificate, key_pem(KEY), tmp_path)
    assert reasons(doorway) == []

    knocking: dict[str, tuple[bytes | None, bytes | None]] = {
        "no_certificate": (None, None),
        "not_member": (signed(root, KEY, "stranger", 30), key_pem(KEY)),
        "superseded": (signed(root, KEY, "north", 30), key_pem(KEY)),
        "expired": (signed(root, KEY, "north", 0), key_pem(KEY)),
        "foreign": (signed(foreign_authority(), KEY, "north", 30), key_pem(KEY)),
    }
    for reason, shown in knocking.items():
        assert not doorway.passes(*shown, tmp_path), reason
        until(lambda wanted=reason: wanted in reasons(doorway))
    assert doorway.passes(certificate, key_pem(KEY), tmp_path)


def test_the_same_stranger_fills_no_ledger(
    doorway: Doorway, root: authority.Authority, tmp_path: Path
) -> None:
    shown = signed(root, KEY, "persistent", 30)
    before = len(doorway.recorded())

    for _ in range(5):
        assert not doorway.passes(shown, key_pem(KEY), tmp_path)

    assert len(doorway.recorded()) == before + 1


def test_an_expelled_member_is_cut_off_at_once_and_stays_out(
    doorway: Doorway, root: authority.Authority, tmp_path: Path
) -> None:
    certificate = admitted(doorway, root, "south")
    watching = threading.Thread(target=doorway.door.watch, daemon=True)
    watching.start()
    with doorway.connect(certificate, key_pem(KEY), tmp_path) as sock:
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"
        assert doorway.book.ledger is not None

        members.end(doorway.book.engine, doorway.book.ledger, "south", MemberState.EXPELLED)

        sock.settimeout(60)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _read_to_the_end(sock)
    assert not doorway.passes(certificate, key_pem(KEY), tmp_path)
    until(lambda: "expelled" in reasons(doorway))
    assert door.CUT_OFF in [kind for kind, _ in doorway.recorded()]


def _read_to_the_end(sock: ssl.SSLSocket) -> None:
    if not sock.recv(1):
        raise ConnectionResetError


def test_a_silent_peer_holds_nobody_up(
    doorway: Doorway, root: authority.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 2.0)
    certificate = admitted(doorway, root, "east")

    with socket.create_connection(("127.0.0.1", doorway.port), 30) as silent:
        assert doorway.passes(certificate, key_pem(KEY), tmp_path)
        silent.settimeout(60)
        assert silent.recv(1) == b""  # the door closes it


def test_more_strangers_than_there_are_places_are_turned_away_and_members_come_in_afterwards(
    doorway: Doorway, root: authority.Authority, tmp_path: Path
) -> None:
    certificate = admitted(doorway, root, "west")
    silent = [
        socket.create_connection(("127.0.0.1", doorway.port), 30) for _ in range(door.MAX_STRANGERS + 8)
    ]
    for one in silent:
        one.close()

    until(lambda: doorway.passes(certificate, key_pem(KEY), tmp_path))


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (b"\n", "ask: expected"),
        (b"[]\n", "JSON object"),
        (b"{\n", "JSON body"),
        (b"\xff\xfe\n", "JSON body"),
        (b'{"ask": "root_key"}\n', "expected one of"),
        (b'{"ask": "enrol", "selector": 7}\n', "selector"),
        (b'{"ask": "check", "selector": "AAAAA", "secret": ""}\n', "secret"),
        (b"x" * (enrolment.MAX_QUESTION_BYTES + 1), "at most"),
    ],
    ids=["empty", "list", "cut", "bytes", "unknown", "number", "no secret", "large"],
)
def test_a_hostile_question_gets_an_answer_and_nothing_else(
    doorway: Doorway, question: bytes, said: str
) -> None:
    with enrolment_connection(doorway.port, doorway.federation.root) as sock:
        sock.sendall(question)
        answer = b""
        while more := sock.recv(4096):
            answer += more

    assert said in json.loads(answer)["error"]


def test_a_slow_question_is_given_up(doorway: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "QUESTION_S", 0.5)

    with enrolment_connection(doorway.port, doorway.federation.root) as sock:
        sock.sendall(b'{"ask":')

        assert sock.recv(1) == b""


def test_the_coordinators_own_certificates_come_from_this_machine_alone(
    doorway: Doorway, root: authority.Authority
) -> None:
    made = signed(root, KEY, "own", 30)
    der = ssl.PEM_cert_to_DER_cert(made.decode())
    opened = door.Door(doorway.book.engine, doorway.door.ledger, doorway.door.service, lambda: (der,))
    peer = door.Peer("own", "1", "0" * 64, der)

    assert opened.reason(peer, "127.0.0.1") == ""
    assert opened.reason(peer, "10.1.2.3") == "own_certificate_from_elsewhere"
    assert opened.reason(peer, "") == "own_certificate_from_elsewhere"
