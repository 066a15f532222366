from __future__ import annotations

import json
import socket
import stat
import threading
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from appliance import peers
from appliance.callers import SNAPSHOT, DatabaseCallers
from appliance.cli import build
from appliance.db.clinical import ClinicalLedgerEntry, Peer, RejectedCaller
from appliance.db.engine import make_engine, reading, writing
from appliance.names import Names
from appliance.peers import CallerRecorder, NewPeer, PeerError
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller, Decision
from tests.dicom_node.support import start_scp, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.names import Network
    from appliance.node import ClinicalZone


def add(zone: ClinicalZone, **values: Any) -> Peer:
    values = {"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "may_send": True, **values}
    with writing(zone.engine) as session:
        return peers.add_peer(session, zone.ledger, NewPeer(**values))


def callers_of(
    zone: ClinicalZone, names: Names | None = None, engine: Engine | None = None
) -> DatabaseCallers:
    return DatabaseCallers(engine or zone.engine, names or Names(), zone.root / SNAPSHOT)


def decide(zone: ClinicalZone, ae_title: str, address: str) -> tuple[bool, str]:
    callers = callers_of(zone)
    callers.refresh()
    decision = callers.decide(Caller(ae_title, "CLOISTER", address))
    return decision.allowed, decision.reason


def test_a_sender_is_known_by_title_and_address(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="10.1.0.0/16")
    assert decide(clinical_zone, "PACS", "10.1.2.3") == (True, "")
    assert decide(clinical_zone, "PACS", "10.2.2.3") == (False, "wrong_address")
    assert decide(clinical_zone, "PACS", "::1") == (False, "wrong_address")
    assert decide(clinical_zone, "pacs", "10.1.2.3") == (False, "unknown_ae_title")


def test_one_title_may_call_from_several_places(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="10.0.0.1")
    add(clinical_zone, name="PACS 2", host="10.0.0.2")
    assert decide(clinical_zone, "PACS", "10.0.0.2") == (True, "")


def test_a_host_name_is_resolved(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="localhost")
    add(clinical_zone, name="gone", ae_title="GONE", host="no-such-host.invalid")
    names = Names()
    callers = callers_of(clinical_zone, names)
    callers.refresh()
    names.start()
    wait_until(lambda: callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1")).allowed, "it is resolved")
    assert not callers.decide(Caller("PACS", "CLOISTER", "192.0.2.1")).allowed
    assert not callers.decide(Caller("GONE", "CLOISTER", "127.0.0.1")).allowed


def test_a_name_that_cannot_be_one_counts_as_unresolved(clinical_zone: ClinicalZone) -> None:
    with writing(clinical_zone.engine) as session:  # a row from before labels were limited
        session.add(Peer(name="old", ae_title="OLD", host="a" * 64 + ".example", may_send=True))
    add(clinical_zone, host="localhost")
    names = Names()
    callers = callers_of(clinical_zone, names)
    callers.refresh()
    names.start()
    wait_until(lambda: callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1")).allowed, "the other is")
    callers.refresh()
    assert not callers.decide(Caller("OLD", "CLOISTER", "127.0.0.1")).allowed


def test_a_resolver_that_hangs_holds_nobody_up(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="slow.example")
    add(clinical_zone, name="CT", ae_title="CT")
    asked, released = threading.Event(), threading.Event()

    def hang(name: str) -> tuple[Network, ...]:
        asked.set()
        released.wait()
        raise OSError(name)

    names = Names(hang)
    names.start()
    callers = callers_of(clinical_zone, names)
    callers.refresh()
    assert asked.wait(30)
    callers.refresh()
    assert callers.decide(Caller("CT", "CLOISTER", "127.0.0.1")).allowed
    assert not callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1")).allowed
    released.set()


def test_the_last_good_answer_stays_while_a_name_cannot_be_resolved() -> None:
    answers = [socket.gaierror(), ip_network("192.0.2.1"), OSError(), UnicodeError(), OSError()]
    left = list(answers)

    def lookup(name: str) -> tuple[Network, ...]:
        assert name == "pacs.example"
        answer = left.pop(0) if left else OSError()
        if isinstance(answer, Exception):
            raise answer
        return (answer,)

    names = Names(lookup, ttl_s=0.01, retry_s=0.01)
    assert names.networks("pacs.example") is None
    names.want(["pacs.example"])
    names.start()
    wait_until(lambda: not left, "all was asked")
    assert names.networks("pacs.example") == (ip_network("192.0.2.1"),)
    names.want([])
    assert names.networks("pacs.example") is None


def test_destinations_and_disabled_peers_may_not_send(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, may_send=False, is_destination=True, port=104)
    assert decide(clinical_zone, "PACS", "127.0.0.1") == (False, "unknown_ae_title")
    add(clinical_zone, name="CT", ae_title="CT")
    with writing(clinical_zone.engine) as session:
        peers.set_enabled(session, clinical_zone.ledger, name="CT", enabled=False)
    assert decide(clinical_zone, "CT", "127.0.0.1") == (False, "unknown_ae_title")


def test_before_the_first_look_at_the_database_nobody_may_send(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone)
    callers = callers_of(clinical_zone)
    decision = callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1"))
    assert decision == Decision(allowed=False, reason="not_ready", transient=True)


@pytest.fixture
def database_away(tmp_path: Path) -> Engine:
    return make_engine(f"sqlite:///{tmp_path}/no-such-folder/x.db")


def test_a_process_that_starts_while_the_database_is_away_knows_who_may_send(
    clinical_zone: ClinicalZone, database_away: Engine
) -> None:
    add(clinical_zone, host="10.1.0.0/16")
    add(clinical_zone, name="CT", ae_title="CT", host="ct.example")
    names = Names(lambda _: (ip_network("192.0.2.7"),))
    names.start()
    before = callers_of(clinical_zone, names)
    before.refresh()
    wait_until(lambda: names.networks("ct.example"), "the name is resolved")
    before.refresh()

    callers = callers_of(clinical_zone, engine=database_away)
    with pytest.raises(SQLAlchemyError):
        callers.refresh()
    assert callers.decide(Caller("PACS", "CLOISTER", "10.1.2.3")).allowed
    assert callers.decide(Caller("CT", "CLOISTER", "192.0.2.7")).allowed
    assert callers.decide(Caller("CT", "CLOISTER", "192.0.2.8")).reason == "wrong_address"
    assert callers.decide(Caller("EVIL", "CLOISTER", "10.1.2.3")).reason == "unknown_ae_title"
    assert stat.S_IMODE((clinical_zone.root / SNAPSHOT).stat().st_mode) == 0o600


def test_who_may_send_no_more_is_not_in_the_kept_file_either(
    clinical_zone: ClinicalZone, database_away: Engine
) -> None:
    add(clinical_zone)
    callers = callers_of(clinical_zone)
    callers.refresh()
    with writing(clinical_zone.engine) as session:
        peers.set_enabled(session, clinical_zone.ledger, name="PACS", enabled=False)
    callers.refresh()
    later = callers_of(clinical_zone, engine=database_away)
    assert later.decide(Caller("PACS", "CLOISTER", "127.0.0.1")).reason == "unknown_ae_title"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"senders": [{"ae_title": "PACS", "host": "x", "networks": ["y"]}]}']
)
def test_a_kept_file_that_is_damaged_lets_nobody_in_and_is_written_anew(
    clinical_zone: ClinicalZone, text: str
) -> None:
    add(clinical_zone)
    (clinical_zone.root / SNAPSHOT).write_text(text)
    callers = callers_of(clinical_zone)
    assert callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1")).reason == "not_ready"
    callers.refresh()
    assert callers_of(clinical_zone).decide(Caller("PACS", "CLOISTER", "127.0.0.1")).allowed


def test_a_caller_whose_name_has_no_address_yet_is_asked_to_come_again(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="pacs.example")
    callers = callers_of(clinical_zone)
    callers.refresh()
    decision = callers.decide(Caller("PACS", "CLOISTER", "127.0.0.1"))
    assert decision == Decision(allowed=False, reason="name_unresolved", transient=True)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"ae_title": "SEVENTEEN_LETTERS"}, "ae_title"),
        ({"ae_title": "BACK\\SLASH"}, "ae_title"),
        ({"ae_title": "ÄÖÜ"}, "ae_title"),
        ({"host": "10.0.0.0/33"}, "host"),
        ({"host": "no such host"}, "host"),
        ({"host": "-x"}, "host"),
        ({"host": "a" * 64 + ".example"}, "host"),
        ({"is_destination": True, "port": 0}, "port"),
        ({"is_destination": True, "port": 70000}, "port"),
        ({"is_destination": True, "port": 104, "host": "10.0.0.0/8"}, "host"),
        ({"may_send": False}, "expected a peer"),
    ],
)
def test_a_peer_that_makes_no_sense_is_refused(
    clinical_zone: ClinicalZone, values: dict[str, Any], field: str
) -> None:
    with pytest.raises(PeerError, match=field):
        add(clinical_zone, **values)


def test_the_longest_label_is_taken(clinical_zone: ClinicalZone) -> None:
    assert add(clinical_zone, host="a" * 63 + ".example").host.endswith(".example")


def test_changes_are_in_the_ledger_without_names(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="10.9.8.7")
    with writing(clinical_zone.engine) as session:
        peers.set_enabled(session, clinical_zone.ledger, name="PACS", enabled=False)
        peers.remove_peer(session, clinical_zone.ledger, name="PACS")
    with reading(clinical_zone.engine) as session:
        entries = session.scalars(select(ClinicalLedgerEntry).order_by(ClinicalLedgerEntry.sequence)).all()
    assert [entry.kind for entry in entries][-3:] == ["peer.added", "peer.changed", "peer.removed"]
    assert not any("10.9.8.7" in entry.body or "PACS" in entry.body for entry in entries)


def test_a_taken_name_and_an_unknown_one_are_refused(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone)
    with pytest.raises(PeerError, match="taken"):
        add(clinical_zone)
    with writing(clinical_zone.engine) as session, pytest.raises(PeerError, match="no peer"):
        peers.set_enabled(session, clinical_zone.ledger, name="other", enabled=True)


def test_rejected_callers_are_listed_once_with_a_count(clinical_zone: ClinicalZone) -> None:
    recorder = CallerRecorder(clinical_zone.engine)
    evil = Caller("EVIL", "CLOISTER", "192.0.2.1")
    for _ in range(3):
        recorder.rejected(evil, "unknown_ae_title")
    recorder.rejected(Caller("OTHER", "CLOISTER", "192.0.2.1"), "wrong_address")
    recorder.flush()
    recorder.rejected(evil, "wrong_address")
    recorder.flush()
    recorder.flush()
    with reading(clinical_zone.engine) as session:
        rows = {row.calling_ae_title: row for row in peers.list_rejected(session)}
    assert (rows["EVIL"].count, rows["EVIL"].reason) == (4, "wrong_address")
    assert rows["OTHER"].count == 1


def test_a_scanner_cannot_fill_the_database(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MAX_REJECTED_ROWS", 20)
    recorder = CallerRecorder(clinical_zone.engine)
    for number in range(50):
        recorder.rejected(Caller(f"SCAN{number}\x00\n", "X" * 40, "192.0.2.1"), "unknown_ae_title")
    recorder.flush()
    with reading(clinical_zone.engine) as session:
        rows = session.scalars(select(RejectedCaller)).all()
    assert len(rows) == 20
    assert all(row.calling_ae_title.isprintable() and len(row.called_ae_title) <= 16 for row in rows)


def test_a_known_caller_was_seen(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone)
    recorder = CallerRecorder(clinical_zone.engine)
    recorder.accepted(Caller("PACS", "CLOISTER", "127.0.0.1"))
    recorder.flush()
    with reading(clinical_zone.engine) as session:
        assert peers.get_peer(session, "PACS").last_seen_at is not None


@pytest.fixture
def config(clinical_zone: ClinicalZone, tmp_path: Path) -> Path:
    path = tmp_path / "cloister.toml"
    path.write_text(f'data_root = "{clinical_zone.settings.data_root}"\n', encoding="utf-8")
    return path


def cloister(config: Path, *arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(build(), ["peer", *arguments, "--config", str(config)])
    return outcome.exit_code, outcome.output


def test_the_command_adds_lists_disables_and_removes(config: Path) -> None:
    assert cloister(config, "add", "Main PACS", "PACS", "10.0.0.0/8", "--may-send")[0] == 0
    assert cloister(config, "add", "ws", "WS", "ws.hospital.example", "11112", "--destination")[0] == 0
    assert cloister(config, "disable", "Main PACS")[0] == 0
    code, text = cloister(config, "list", "--json")
    assert code == 0
    listed = {row["name"]: row for row in json.loads(text)}
    assert listed["Main PACS"]["enabled"] is False
    assert (listed["ws"]["port"], listed["ws"]["is_destination"]) == (11112, True)
    assert "disabled" in cloister(config, "list")[1]
    assert cloister(config, "enable", "Main PACS")[0] == 0
    assert cloister(config, "remove", "Main PACS")[0] == 0
    assert len(json.loads(cloister(config, "list", "--json")[1])) == 1


def test_the_command_says_what_is_wrong_with_exit_code_2(config: Path) -> None:
    code, text = cloister(config, "add", "x", "TOO_LONG_FOR_AN_AE_TITLE", "10.0.0.1", "--may-send")
    assert (code, "ae_title" in text) == (2, True)
    assert cloister(config, "remove", "nobody")[0] == 2


def test_the_command_lists_who_was_turned_away(config: Path, clinical_zone: ClinicalZone) -> None:
    recorder = CallerRecorder(clinical_zone.engine)
    recorder.rejected(Caller("EVIL", "CLOISTER", "192.0.2.1"), "unknown_ae_title")
    recorder.flush()
    (row,) = json.loads(cloister(config, "rejected", "--json")[1])
    assert (row["calling_ae_title"], row["address"], row["count"]) == ("EVIL", "192.0.2.1", 1)
    assert "EVIL" in cloister(config, "rejected")[1]


def test_the_command_asks_a_destination(config: Path, tmp_path: Path) -> None:
    running = start_scp(Inbox(tmp_path / "inbox", min_free_bytes=0))
    try:
        cloister(config, "add", "ws", "CLOISTER", "127.0.0.1", str(running.port), "--destination")
        assert cloister(config, "echo", "ws")[0] == 0
    finally:
        running.scp.stop()
    code, text = cloister(config, "echo", "ws", "--timeout", "2", "--json")
    assert (code, json.loads(text)["ok"]) == (1, False)
