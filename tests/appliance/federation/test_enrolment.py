"""Joining, renewing and leaving between a real site and a real coordinator's door."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from sqlalchemy import select

from appliance import keys
from appliance.db.coordinator import Invitation, MemberState
from appliance.db.engine import reading
from appliance.federation import (
    askcoordinator,
    authority,
    enrolment,
    invitations,
    joincode,
    joining,
    members,
    preflight,
    workspaces,
)
from appliance.federation.errors import (
    CoordinatorAwayError,
    EnrolmentError,
    MembershipError,
    StrangeRootError,
)
from appliance.settings import Settings, load_settings
from tests.appliance.federation.doorway import Doorway, running_doorway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doorway]:
    with running_doorway(tmp_path_factory.mktemp("enrolment") / "c") as running:
        yield running


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[str], Settings]:
    def make(name: str) -> Settings:
        (tmp_path / name).mkdir()
        config = tmp_path / name / "cloister.toml"
        config.write_text(f'name = "{name}"\ndata_root = "data"\n')
        return load_settings(config)

    return make


@pytest.fixture
def settings(make_site: Callable[[str], Settings]) -> Settings:
    return make_site("site")


def signing_key(settings: Settings) -> str:
    found = keys.load_research_keys(settings.zone_root("research")).signing
    return found.public_key().public_bytes_raw().hex()


def by_name(found: list[Any]) -> dict[str, Any]:
    return {one.name: one for one in found}


def kinds(doorway: Doorway) -> list[str]:
    return [kind for kind, _ in doorway.recorded()]


def listening(impostor: Doorway, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what an impostor's door hears from now on."""
    heard: list[str] = []
    answer = impostor.door._answer

    def listen(question: bytes) -> bytes:
        heard.append(question.decode())
        return answer(question)

    monkeypatch.setattr(impostor.door, "_answer", listen)
    return heard


def wrong_secret(text: str) -> str:
    code = joincode.parse(text)
    return str(replace(code, secret="0" * joincode.SECRET))


def test_a_site_joins_with_a_code_and_its_keys_never_leave_it(
    doorway: Doorway, settings: Settings, tmp_path: Path
) -> None:
    code = doorway.invite("north")

    joined = joining.join(code, settings)

    member = members.find(doorway.book.engine, "north")
    assert member is not None
    assert (member.name, member.state, member.signing_key) == (
        joined.site,
        MemberState.ACTIVE,
        signing_key(settings),
    )
    here = workspaces.read(joined.workspace)
    made = x509.load_pem_x509_certificate(here.certificate)
    assert member.serials == (f"{made.serial_number:x}",)
    assert here.root == authority.load(doorway.federation.root).pem
    assert doorway.passes(here.certificate, here.key, tmp_path)
    private = [path for path in settings.zone_root("research").rglob("*") if path.suffix in {".key", ".pem"}]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private if path.is_file())
    assert not (settings.zone_root("research") / "federation" / "joining.key").exists()
    stored = b"".join(path.read_bytes() for path in doorway.federation.root.rglob("*") if path.is_file())
    assert here.key.splitlines()[5] not in stored
    assert joincode.parse(code).secret.encode() not in stored


def test_a_code_is_good_once_and_for_its_site_again_when_the_answer_was_lost(
    doorway: Doorway, make_site: Callable[[str], Settings]
) -> None:
    code, first, second = doorway.invite("twice"), make_site("first"), make_site("second")
    joining.join(code, first)

    again = joining.join(code, first)  # the same research zone, as if the first answer had not come

    assert again.site == "twice"
    with pytest.raises(EnrolmentError, match="used already"):
        joining.join(code, second)
    member = members.find(doorway.book.engine, "twice")
    assert member is not None
    assert member.signing_key == signing_key(first)


def test_a_name_that_is_taken_is_not_given_to_another_key(
    doorway: Doorway, make_site: Callable[[str], Settings]
) -> None:
    joining.join(doorway.invite("taken"), make_site("first"))

    with pytest.raises(EnrolmentError, match="another signing key"):
        joining.join(doorway.invite("taken"), make_site("second"))

    assert kinds(doorway)[-1] == members.KEY_REFUSED


@pytest.mark.parametrize("why", ["expired", "withdrawn", "locked"])
def test_a_code_that_is_no_longer_good_is_refused_with_the_reason(
    doorway: Doorway, settings: Settings, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = doorway.invite(why)
    assert doorway.book.ledger is not None
    if why == "expired":
        monkeypatch.setattr(invitations, "now", lambda: datetime.now(UTC) + timedelta(hours=2))
    elif why == "withdrawn":
        assert invitations.withdraw(doorway.book.engine, doorway.book.ledger, why) == 1
    else:
        for _ in range(invitations.MAX_ATTEMPTS):
            with pytest.raises(EnrolmentError, match="not known"):
                joining.join(wrong_secret(code), settings)

    found = by_name(preflight.of_code(code))["code at the coordinator"]
    with pytest.raises(EnrolmentError, match=r"ask the coordinator's people for a new one"):
        joining.join(code, settings)

    assert (found.ok, why in found.detail or why == "locked") == (False, True)
    assert "invite" in found.fix


def test_whoever_guesses_codes_is_stopped_before_long_and_the_ledger_stays_short(doorway: Doorway) -> None:
    assert doorway.book.ledger is not None
    root = authority.load(doorway.federation.root)
    at = [0.0]
    service = enrolment.Enrolment(
        doorway.federation,
        doorway.book.engine,
        doorway.book.ledger,
        root,
        enrolment.WrongCodes(limit=3, clock=lambda: at[0]),
    )
    question = {"ask": "check", "selector": "ZZZZZ", "secret": "0" * 15}
    before = len(kinds(doorway))
    assert [service.answer(question)["standing"] for _ in range(3)] == ["unknown"] * 3

    with pytest.raises(EnrolmentError, match="too many wrong codes"):
        service.answer(question)
    at[0] = 61.0

    assert service.answer(question)["standing"] == "unknown"
    assert len(kinds(doorway)) == before


def test_of_a_code_the_coordinator_keeps_the_hash_alone(doorway: Doorway) -> None:
    code = joincode.parse(doorway.invite("hashed"))

    with reading(doorway.book.engine) as session:
        row = session.scalars(select(Invitation).where(Invitation.site == "hashed")).one()
        kept = json.dumps([row.id, row.secret_sha256])
    assert code.secret not in kept
    assert code.selector not in kept


@pytest.mark.parametrize("hours", [0.0, -1.0, 10_000.0, float("nan")])
def test_hours_out_of_bounds_make_no_code(doorway: Doorway, hours: float) -> None:
    with pytest.raises(EnrolmentError, match="hours"):
        doorway.invite("north", hours)


def test_a_second_code_for_a_site_withdraws_the_first(doorway: Doorway, settings: Settings) -> None:
    first, _ = doorway.invite("again"), doorway.invite("again")

    with pytest.raises(EnrolmentError, match="withdrawn"):
        joining.join(first, settings)


def test_a_member_renews_with_its_own_key_even_when_the_certificate_has_ended(
    doorway: Doorway, settings: Settings, tmp_path: Path
) -> None:
    joined = joining.join(doorway.invite("renewing"), settings)
    before = workspaces.read(joined.workspace)
    ended = authority.load(doorway.federation.root).sign_site(
        joining._request(before.private_key()).encode(),
        "renewing",
        timedelta(0),
    )
    assert not preflight.certificate(ended).ok
    assert "expired" in preflight.certificate(ended).detail

    joining.renew(joined.workspace, settings.zone_root("research"))

    after = workspaces.read(joined.workspace)
    assert after.key == before.key
    assert after.certificate != before.certificate
    assert doorway.passes(after.certificate, after.key, tmp_path)
    assert doorway.passes(before.certificate, before.key, tmp_path)  # the engine may still hold it


def test_another_key_renews_nothing(doorway: Doorway, make_site: Callable[[str], Settings]) -> None:
    victim, thief = make_site("victim"), make_site("thief")
    joined = joining.join(doorway.invite("victim"), victim)
    joining.join(doorway.invite("thief"), thief)

    with pytest.raises(EnrolmentError, match="signature"):
        joining.renew(joined.workspace, thief.zone_root("research"))
    with pytest.raises(EnrolmentError, match="signature"):
        joining.leave(joined.workspace, thief.zone_root("research"))
    assert "victim" in members.active(doorway.book.engine)


def test_a_request_from_another_time_is_refused(
    doorway: Doorway, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = joining.join(doorway.invite("late"), settings)
    monkeypatch.setattr(joining, "now", lambda: datetime.now(UTC) - timedelta(hours=1))

    with pytest.raises(EnrolmentError, match="clock"):
        joining.renew(joined.workspace, settings.zone_root("research"))


def test_a_site_leaves_and_comes_back_with_a_new_code_but_not_after_it_was_expelled(
    doorway: Doorway, settings: Settings, tmp_path: Path
) -> None:
    joined = joining.join(doorway.invite("leaving"), settings)
    here = workspaces.read(joined.workspace)

    joining.leave(joined.workspace, settings.zone_root("research"))
    joining.forget(joined.workspace)

    assert not doorway.passes(here.certificate, here.key, tmp_path)
    again = joining.join(doorway.invite("leaving"), settings)
    late = doorway.invite("leaving")
    assert doorway.book.ledger is not None
    members.end(doorway.book.engine, doorway.book.ledger, "leaving", MemberState.EXPELLED)
    with pytest.raises(EnrolmentError, match="expelled"):
        joining.join(late, settings)
    with pytest.raises(EnrolmentError, match="no active member"):
        joining.renew(again.workspace, settings.zone_root("research"))
    with pytest.raises(MembershipError, match="expelled"):
        doorway.invite("leaving")


def test_the_preflight_changes_nothing(doorway: Doorway, settings: Settings) -> None:
    code, before = doorway.invite("looking"), None
    before = kinds(doorway)

    found = preflight.of_code(code)

    assert all(one.ok for one in found), found
    assert [one.name for one in found] == ["code", "name", "TCP", "TLS", "clock", "code at the coordinator"]
    assert "looking" in found[-1].detail
    assert kinds(doorway) == before
    assert joining.join(code, settings).site == "looking"
    assert all(
        one.ok for one in preflight.of_site(settings.zone_root("research") / "federation" / "workspace")
    )


@pytest.mark.parametrize(
    ("change", "step", "side"),
    [
        ({"host": "no-such-host.invalid"}, "name", "name server"),
        ({"port": 1}, "TCP", "firewall"),
        ({"fingerprint": "0" * joincode.FINGERPRINT}, "TLS", "TLS inspection"),
    ],
    ids=["name", "port", "root"],
)
def test_the_preflight_says_what_is_blocked_and_who_changes_what(
    doorway: Doorway, change: dict[str, Any], step: str, side: str
) -> None:
    code = str(replace(joincode.parse(doorway.invite("blocked")), **change))

    last = preflight.of_code(code)[-1]

    assert (last.name, last.ok) == (step, False)
    assert side in last.fix


def test_a_clock_that_is_wrong_is_named(doorway: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    code = doorway.invite("clock")
    monkeypatch.setattr(preflight, "now", lambda: datetime.now(UTC) - timedelta(hours=3))

    found = by_name(preflight.of_code(code))["clock"]

    assert not found.ok
    assert "NTP" in found.fix


def test_a_mistyped_code_is_noticed_before_anything_is_asked(doorway: Doorway) -> None:
    text = doorway.invite("typing")

    [found] = preflight.of_code(text[:-1] + ("0" if text[-1] != "0" else "1"))

    assert (found.name, found.ok) == ("code", False)


def test_the_secret_goes_to_nobody_but_the_coordinator_of_the_code(
    doorway: Doorway,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_doorway(tmp_path_factory.mktemp("impostor") / "c") as impostor:
        code = joincode.parse(doorway.invite("careful"))
        text = str(replace(code, port=impostor.port))
        heard = listening(impostor, monkeypatch)

        with pytest.raises(StrangeRootError, match="another root"):
            joining.join(text, settings)

        root = authority.load(doorway.federation.root).pem
        address = askcoordinator.Address("localhost", impostor.port)
        with pytest.raises(StrangeRootError, match="inspecting proxy"):
            askcoordinator.ask(address, root, {"ask": "hello", "secret": code.secret})
    assert heard
    assert not [line for line in heard if code.secret in line]


def test_a_coordinator_that_is_away_is_named(doorway: Doorway) -> None:
    root = authority.load(doorway.federation.root).pem

    with pytest.raises(CoordinatorAwayError, match="localhost:1"):
        askcoordinator.ask(askcoordinator.Address("localhost", 1), root, {"ask": "hello"})
