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

from appliance import peers, secrets
from appliance.callers import SNAPSHOT, DatabaseCallers
from appliance.cli import build
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import make_engine, reading, writing
from appliance.db.peers import Peer, RejectedCaller
from appliance.names import Names
from appliance.peers import CallerRecorder, NewPeer, PeerError
from appliance.secrets import SecretError
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


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"protocol": "ftp"}, "protocol"),
        ({"url": "https://pacs/dicom-web"}, "url"),
        ({"credential": "pacs"}, "credential"),
        ({"protocol": "dicomweb"}, "protocol"),
        ({"protocol": "dicomweb", "is_destination": True, "url": "ftp://pacs"}, "url"),
        ({"protocol": "dicomweb", "is_destination": True, "url": "https://u:p@pacs/"}, "url"),
        (
            {"protocol": "dicomweb", "is_destination": True, "url": "https://pacs", "commitment": True},
            "commit",
        ),
        ({"is_archive": True}, "port"),
        ({"is_archive": True, "host": "10.0.0.0/8", "port": 104}, "host"),
        ({"max_associations": -1}, "max_associations"),
        ({"max_kib_per_s": 10**9}, "max_kib_per_s"),
        ({"quiet_period_s": 0.0}, "quiet_period_s"),
        ({"quiet_period_s": 60.0, "max_wait_s": 30.0}, "max_wait_s"),
        ({"transfer_syntax_uid": "1.2.840.10008.1.1"}, "transfer_syntax_uid"),
        ({"certificate_sha256": "0123"}, "certificate_sha256"),
        ({"schedule": {"from": "25:00", "to": "06:00"}}, "schedule"),
        ({"schedule": {"hours": "all"}}, "schedule"),
    ],
)
def test_every_field_is_checked_and_named(
    clinical_zone: ClinicalZone, values: dict[str, Any], field: str
) -> None:
    with pytest.raises(PeerError, match=field):
        add(clinical_zone, **values)


def test_a_dicomweb_destination_needs_its_url_alone(clinical_zone: ClinicalZone) -> None:
    peer = add(
        clinical_zone,
        name="cloud",
        ae_title="",
        host="",
        may_send=False,
        is_destination=True,
        protocol="dicomweb",
        url="https://pacs.hospital.example:8443/dicom-web",
    )
    assert peer.host == "pacs.hospital.example"


def test_a_pinned_certificate_means_tls(clinical_zone: ClinicalZone) -> None:
    peer = add(clinical_zone, certificate_sha256=":".join(["AB"] * 32))
    assert (peer.tls, peer.certificate_sha256) == (True, "ab" * 32)


def test_a_change_keeps_the_rest_and_the_ledger_names_the_fields(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, max_associations=3)
    changes = {"host": "10.9.8.7", "quiet_period_s": 30.0, "name": "Main"}
    with writing(clinical_zone.engine) as session:
        peer = peers.change_peer(session, clinical_zone.ledger, name="PACS", changes=changes)
    assert (peer.host, peer.quiet_period_s, peer.max_associations) == ("10.9.8.7", 30.0, 3)
    with reading(clinical_zone.engine) as session:
        entry = session.scalars(
            select(ClinicalLedgerEntry).order_by(ClinicalLedgerEntry.sequence.desc())
        ).first()
    assert entry is not None
    assert json.loads(entry.body)["fields"] == ["name", "host", "quiet_period_s"]
    assert "10.9.8.7" not in entry.body


def test_a_change_that_makes_no_sense_changes_nothing(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone)
    add(clinical_zone, name="other", ae_title="OTHER")
    for changes in ({"may_send": False}, {"name": "other"}, {"enabled": False}, {"port": 70000}):
        with pytest.raises(PeerError), writing(clinical_zone.engine) as session:
            peers.change_peer(session, clinical_zone.ledger, name="PACS", changes=changes)
    assert decide(clinical_zone, "PACS", "127.0.0.1") == (True, "")


def over_tls(
    zone: ClinicalZone, sha256: str = "", *, tls: bool = True, address: str = "10.0.0.1"
) -> tuple[bool, str]:
    callers = callers_of(zone)
    callers.refresh()
    decision = callers.decide(Caller("PACS", "CLOISTER", address, tls, sha256))
    restarted = callers_of(zone)
    assert restarted.decide(Caller("PACS", "CLOISTER", address, tls, sha256)) == decision, "from the snapshot"
    return decision.allowed, decision.reason


def test_a_peer_with_tls_must_come_with_it_and_with_its_certificate(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="10.0.0.1", tls=True)
    assert over_tls(clinical_zone, tls=False) == (False, "needs_tls")
    assert over_tls(clinical_zone) == (True, "")
    with writing(clinical_zone.engine) as session:
        changes = {"certificate_sha256": "ab" * 32}
        peers.change_peer(session, clinical_zone.ledger, name="PACS", changes=changes)
    assert over_tls(clinical_zone, tls=False) == (False, "needs_tls")
    assert over_tls(clinical_zone) == (False, "wrong_certificate")
    assert over_tls(clinical_zone, "cd" * 32) == (False, "wrong_certificate")
    assert over_tls(clinical_zone, "ab" * 32) == (True, "")
    assert over_tls(clinical_zone, "ab" * 32, address="10.0.0.2") == (False, "wrong_address")


def turned_away(zone: ClinicalZone, reason: str, **caller: Any) -> str:
    recorder = CallerRecorder(zone.engine)
    recorder.rejected(Caller(**{"calling_ae_title": "PACS", "called_ae_title": "CLOISTER", **caller}), reason)
    recorder.flush()
    with reading(zone.engine) as session:
        return peers.list_rejected(session)[0].id


def test_allowing_a_caller_pins_the_certificate_that_it_showed(clinical_zone: ClinicalZone) -> None:
    row = turned_away(
        clinical_zone, "unknown_ae_title", address="10.0.0.1", tls=True, certificate_sha256="ab" * 32
    )
    with writing(clinical_zone.engine) as session:
        peers.allow_caller(session, clinical_zone.ledger, caller_id=row, name="Main PACS")
    assert over_tls(clinical_zone, "ab" * 32) == (True, "")
    assert over_tls(clinical_zone, tls=False) == (False, "needs_tls")
    row = turned_away(
        clinical_zone, "wrong_certificate", address="10.0.0.1", tls=True, certificate_sha256="cd" * 32
    )
    with writing(clinical_zone.engine) as session:
        assert peers.allow_caller(session, clinical_zone.ledger, caller_id=row).name == "Main PACS"
        assert len(peers.list_peers(session)) == 1, "the certificate was renewed, no peer was added"
    assert over_tls(clinical_zone, "cd" * 32) == (True, "")
    assert over_tls(clinical_zone, "ab" * 32) == (False, "wrong_certificate")


@pytest.mark.parametrize("reason", ["needs_tls", "tls_failed", "wrong_called_ae_title"])
def test_allowing_does_not_get_round_what_another_has_to_change(
    clinical_zone: ClinicalZone, reason: str
) -> None:
    row = turned_away(clinical_zone, reason, address="10.0.0.1")
    with pytest.raises(PeerError), writing(clinical_zone.engine) as session:
        peers.allow_caller(session, clinical_zone.ledger, caller_id=row)
    assert over_tls(clinical_zone, tls=False) == (False, "unknown_ae_title")


def test_the_command_changes_shows_and_allows(config: Path, clinical_zone: ClinicalZone) -> None:
    assert cloister(config, "add", "Main PACS", "PACS", "10.0.0.1", "--may-send")[0] == 0
    changes = (
        "--tls",
        "--max-associations",
        "4",
        "--quiet-period",
        "30",
        "--schedule",
        "mon-fri 20:00-06:00",
    )
    assert cloister(config, "change", "Main PACS", "--port", "104", "--destination", *changes)[0] == 0
    shown = json.loads(cloister(config, "show", "Main PACS", "--json")[1])
    assert (shown["tls"], shown["max_associations"], shown["quiet_period_s"]) == (True, 4, 30)
    assert shown["schedule"] == "mon,tue,wed,thu,fri 20:00-06:00"
    assert (shown["port"], shown["is_destination"], shown["may_send"]) == (104, True, True)
    assert cloister(config, "change", "Main PACS", "--quiet-period", "default", "--no-tls")[0] == 0
    assert json.loads(cloister(config, "show", "Main PACS", "--json")[1])["quiet_period_s"] is None
    code, text = cloister(config, "change", "Main PACS", "--schedule", "never")
    assert (code, "expected days" in text) == (2, True)
    turned_away(clinical_zone, "unknown_ae_title", calling_ae_title="CT1", address="10.0.0.9")
    assert cloister(config, "allow", "CT1", "--name", "Scanner 1")[0] == 0
    assert json.loads(cloister(config, "show", "Scanner 1", "--json")[1])["may_send"] is True
    assert cloister(config, "allow", "CT1")[0] == 2


def test_a_secret_comes_by_standard_input_and_is_readable_by_its_owner_alone(
    config: Path, clinical_zone: ClinicalZone, tmp_path: Path
) -> None:
    command = ["peer", "secret", "cloud", "--config", str(config)]
    outcome = CliRunner().invoke(build(), command, input="user:pass word\n")
    assert outcome.exit_code == 0
    assert "pass" not in outcome.output
    assert secrets.read(clinical_zone, "cloud") == "user:pass word"
    path = clinical_zone.root / "secrets" / "cloud"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(SecretError, match="0600"):
        secrets.read(clinical_zone, "cloud")
    (tmp_path / "token").write_text("abc\ndef")
    assert cloister(config, "secret", "cloud", "--file", str(tmp_path / "token"))[0] == 2
    with pytest.raises(SecretError, match="not stored"):
        secrets.read(clinical_zone, "other")
    with pytest.raises(SecretError, match="name"):
        secrets.read(clinical_zone, "../keys/signing")


def test_the_command_tests_a_peer_step_by_step(config: Path, tmp_path: Path) -> None:
    running = start_scp(Inbox(tmp_path / "inbox", min_free_bytes=0))
    try:
        cloister(config, "add", "ws", "CLOISTER", "127.0.0.1", str(running.port), "--destination")
        code, text = cloister(config, "test", "ws")
        assert code == 0, text
        assert not running.heard.received, "nothing is stored unless it is asked for"
        assert cloister(config, "test", "ws", "--store")[0] == 0
        assert len(running.heard.received) == 1
    finally:
        running.scp.stop()
    code, text = cloister(config, "test", "ws", "--json")
    (name, connection) = json.loads(text)["steps"]
    assert (code, name["state"], connection["state"]) == (1, "ok", "failed")
    assert connection["advice"][0]["side"] == "on the peer"


def test_a_test_of_a_sender_says_why_it_was_turned_away(config: Path, clinical_zone: ClinicalZone) -> None:
    add(clinical_zone, host="10.0.0.1")
    code, text = cloister(config, "test", "PACS")
    assert "never called" in text
    assert "nothing listens on our own port" in text
    turned_away(clinical_zone, "wrong_address", address="10.0.0.7")
    code, text = cloister(config, "test", "PACS")
    assert code == 1
    assert "calls from 10.0.0.7: correct the host" in text


def test_a_caller_that_is_allowed_twice_is_one_peer(clinical_zone: ClinicalZone) -> None:
    for _ in range(2):
        row = turned_away(clinical_zone, "unknown_ae_title", address="10.0.0.1")
        with writing(clinical_zone.engine) as session:
            peers.allow_caller(session, clinical_zone.ledger, caller_id=row)
    with reading(clinical_zone.engine) as session:
        assert len(peers.list_peers(session)) == 1


def test_each_caller_may_what_its_peer_says_and_a_new_process_knows_it(clinical_zone: ClinicalZone) -> None:
    add(clinical_zone)
    add(clinical_zone, name="room", ae_title="ROOM", may_send=False, may_query=True)
    archive = {"may_send": False, "is_destination": True, "port": 104, "commitment": True}
    add(clinical_zone, name="archive", ae_title="ARCHIVE", **archive)
    add(clinical_zone, name="printer", ae_title="PRINTER", **{**archive, "commitment": False})
    callers_of(clinical_zone).refresh()
    again = callers_of(clinical_zone)

    def rights(title: str) -> tuple[bool, bool, bool, bool]:
        found = again.decide(Caller(title, "CLOISTER", "127.0.0.1"))
        return found.allowed, found.may_store, found.may_query, found.may_report

    assert rights("PACS") == (True, True, False, False)
    assert rights("ROOM") == (True, False, True, False)
    assert rights("ARCHIVE") == (True, False, False, True)
    assert not rights("PRINTER")[0]
