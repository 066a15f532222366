"""Identities are told and exported to who may ask, for a reason, and never without a record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy import select

from anonymizer import escrow
from appliance import ledger, node, reidentification, vault
from appliance.auth import Principal, Right, rights, users
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.purposes import Purpose
from appliance.reidentification import NotAllowedError, ReidentificationError
from appliance.settings import load_settings
from appliance.vault import Identity
from tests.appliance.test_cli import PASSWORD, cloister

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone

REASON = "incidental finding, ethics vote 12"
WHO = [Identity("lung", "MRN-4711", "HOSPITAL"), Identity("trial", "MRN-4711", "HOSPITAL")]


@pytest.fixture
def config(tmp_path: Path) -> str:
    result = cloister("init", str(tmp_path / "n"), "--name", "ward-7", "--port", "0", "--web-port", "0")
    assert result.exit_code == 0, result.output
    return str(tmp_path / "n" / "cloister.toml")


@pytest.fixture
def zone(config: str, tmp_path: Path) -> Iterator[ClinicalZone]:
    opened = node.open_clinical(load_settings(tmp_path / "n" / "cloister.toml"))
    with writing(opened.engine) as session:
        for identity in WHO:
            vault.store_identity(opened, session, ("PSEUDONYM", identity.project), identity)
        for name, right in (("privacy", Right.REIDENTIFY), ("viewer", Right.VIEW_IDENTITY)):
            users.add_user(session, opened.ledger, name=name, password=PASSWORD, rights=[right])
    yield opened
    opened.engine.dispose()


def _person(zone: ClinicalZone, name: str) -> Principal:
    with reading(zone.engine) as session:
        user = users.find_user(session, name)
        return Principal(user.id, user.name, rights.parse(user.rights), datetime.max.replace(tzinfo=UTC))


def _records(zone: ClinicalZone, kind: str) -> list[tuple[str, dict[str, object]]]:
    with reading(zone.engine) as session:
        rows = session.scalars(select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == kind))
        return [(row.actor, json.loads(row.body)) for row in rows]


def test_who_may_ask_is_told_and_the_ledger_keeps_commitments(zone: ClinicalZone) -> None:
    person = _person(zone, "privacy")
    asked = ("PSEUDONYM", REASON, Purpose.INCIDENTAL_FINDING)
    assert reidentification.reidentify(zone, person, *asked) == WHO
    [(actor, body)] = _records(zone, reidentification.REIDENTIFIED)
    assert actor == person.user_id
    assert body == {
        "pseudonym": ledger.commitment(zone.keys.ledger_salt, f"{reidentification.REIDENTIFIED}\0PSEUDONYM"),
        "reason": ledger.commitment(zone.keys.ledger_salt, f"{person.user_id}\0{REASON}"),
        "purpose": "incidental_finding",
        "found": 2,
    }


def test_what_was_asked_is_listed_without_a_value(zone: ClinicalZone) -> None:
    person, other = _person(zone, "privacy"), _person(zone, "viewer")
    reidentification.reidentify(zone, person, "PSEUDONYM", REASON, Purpose.WITHDRAWAL)
    with pytest.raises(ReidentificationError):
        reidentification.reidentify(zone, person, "NOBODY", REASON)
    with pytest.raises(NotAllowedError):
        reidentification.reidentify(zone, other, "PSEUDONYM", REASON)
    reidentification.export(zone, person, X25519PrivateKey.generate().public_key(), REASON)
    with reading(zone.engine) as session:
        listed = reidentification.questions(session, 10)
        assert reidentification.questions(session, 1) == listed[:1]
    assert [(one.kind, one.user_id, one.purpose, one.found) for one in listed] == [
        (reidentification.EXPORTED, person.user_id, "", 2),
        (reidentification.REFUSED, other.user_id, "", 0),
        (reidentification.REIDENTIFIED, person.user_id, "other", 0),
        (reidentification.REIDENTIFIED, person.user_id, "withdrawal", 2),
    ]
    assert "PSEUDONYM" not in repr(listed)
    assert "MRN" not in repr(listed)


def test_a_question_without_the_right_is_refused_and_recorded(zone: ClinicalZone) -> None:
    person = _person(zone, "viewer")
    with pytest.raises(NotAllowedError, match="reidentify"):
        reidentification.reidentify(zone, person, "PSEUDONYM", REASON)
    with pytest.raises(NotAllowedError):
        reidentification.export(zone, person, X25519PrivateKey.generate().public_key(), REASON)
    assert _records(zone, reidentification.REFUSED) == [(person.user_id, {})] * 2
    assert _records(zone, reidentification.REIDENTIFIED) == []


def test_a_question_about_nobody_is_recorded_too(zone: ClinicalZone) -> None:
    with pytest.raises(ReidentificationError, match="no such pseudonym"):
        reidentification.reidentify(zone, _person(zone, "privacy"), "NOBODY", REASON)
    assert [body["found"] for _, body in _records(zone, reidentification.REIDENTIFIED)] == [0]


@pytest.mark.parametrize("reason", ["", "    x    ", "why", "x" * 501, "a\nreason"], ids=range(5))
def test_a_question_needs_a_reason(zone: ClinicalZone, reason: str) -> None:
    with pytest.raises(ReidentificationError, match="reason"):
        reidentification.reidentify(zone, _person(zone, "privacy"), "PSEUDONYM", reason)
    assert _records(zone, reidentification.REIDENTIFIED) == []


def test_what_cannot_be_recorded_is_not_told(zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reidentification, "REIDENTIFIED", "Not A Code")
    with pytest.raises(ledger.LedgerBodyError):
        reidentification.reidentify(zone, _person(zone, "privacy"), "PSEUDONYM", REASON)


def test_the_command_asks_for_a_person_and_tells(zone: ClinicalZone, config: str) -> None:
    words = ("vault", "reidentify", "PSEUDONYM", "--reason", REASON, "--password-stdin", "--config", config)
    told = cloister(*words, "--user", "privacy", "--purpose", "patient_safety", stdin=PASSWORD)
    assert told.exit_code == 0, told.output
    assert [json.loads(line)["patient_id"] for line in told.output.splitlines()] == ["MRN-4711"] * 2
    for user, password in (("viewer", PASSWORD), ("privacy", "a wrong password"), ("nobody", PASSWORD)):
        refused = cloister(*words, "--user", user, stdin=password)
        assert refused.exit_code == 1
        assert "MRN" not in refused.output
    assert len(_records(zone, reidentification.REFUSED)) == 1
    [(_, body)] = _records(zone, reidentification.REIDENTIFIED)
    assert body["purpose"] == "patient_safety"


def _key_files(folder: Path) -> tuple[Path, Path]:
    key = X25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"of the third party"),
        )
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


def test_an_export_opens_for_the_recipient_alone_and_is_recorded(
    zone: ClinicalZone, config: str, tmp_path: Path
) -> None:
    private, public = _key_files(tmp_path)
    file = tmp_path / "export"
    words = ("vault", "export", str(file), "--recipient", str(public), "--reason", REASON, "--config", config)
    refused = cloister(*words, "--user", "viewer", "--password-stdin", stdin=PASSWORD)
    assert refused.exit_code == 1
    assert not file.exists()
    done = cloister(*words, "--user", "privacy", "--password-stdin", stdin=PASSWORD)
    assert done.exit_code == 0, done.output
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"MRN" not in file.read_bytes()
    opened = cloister(
        "vault", "open", str(file), "--key", str(private), "--password-stdin", stdin="of the third party"
    )
    assert json.loads(opened.output) == {
        "schema": "cloister.vault.export/1",
        "entries": [
            {
                "pseudonym": "PSEUDONYM",
                "project": each.project,
                "patient_id": "MRN-4711",
                "issuer": "HOSPITAL",
            }
            for each in WHO
        ],
    }
    [(actor, body)] = _records(zone, reidentification.EXPORTED)
    assert actor == _person(zone, "privacy").user_id
    key = escrow.read_recipient(public.read_bytes())
    assert (body["recipient"], body["entries"]) == (escrow.fingerprint(key), 2)
    again = cloister(*words, "--user", "privacy", "--password-stdin", stdin=PASSWORD)
    assert again.exit_code == 1
    assert len(_records(zone, reidentification.EXPORTED)) == 1


def test_an_export_that_is_no_export_or_has_another_key_says_so(config: str, tmp_path: Path) -> None:
    private, _ = _key_files(tmp_path)
    (tmp_path / "file").write_bytes(b"no export")
    for password, said in (("of the third party", "expected one that"), ("wrong", "password")):
        words = ("vault", "open", str(tmp_path / "file"), "--key", str(private), "--password-stdin")
        opened = cloister(*words, stdin=password)
        assert opened.exit_code == 1
        assert said in opened.output
