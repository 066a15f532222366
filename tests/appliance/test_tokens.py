"""Bearer tokens: shown once, stored as hashes, never more than their user may do now."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner, Result

from appliance import cli, node
from appliance.auth import Right, rights, tokens, users
from appliance.db.base import now
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import make_engine, reading, writing
from appliance.db.people import AccessToken, User
from appliance.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.ledger import Ledger

PASSWORD = "correct horse battery"
GRANTED = [Right.VIEW, Right.VIEW_IDENTITY, Right.STORE_STUDIES]


@pytest.fixture
def secret(clinical_engine: Engine, ledger: Ledger) -> str:
    with writing(clinical_engine) as session:
        users.add_user(session, ledger, name="anna", password=PASSWORD, rights=GRANTED)
    return make(clinical_engine, ledger, "viewer")


def make(engine: Engine, ledger: Ledger, name: str, **values: object) -> str:
    with writing(engine) as session:
        user = users.find_user(session, "anna")
        return tokens.create(session, ledger, user, name=name, at=now(), **values)  # type: ignore[arg-type]


def test_a_token_acts_for_its_user(clinical_engine: Engine, secret: str) -> None:
    found = tokens.resolve(clinical_engine, secret, now())
    assert found is not None
    assert (found.principal.name, found.token_name) == ("anna", "viewer")
    assert found.principal.rights == {Right.VIEW, Right.VIEW_IDENTITY}


def test_the_database_and_the_ledger_hold_no_token(
    clinical_engine: Engine, ledger: Ledger, secret: str
) -> None:
    with reading(clinical_engine) as session:
        stored = session.scalars(select(AccessToken)).one()
        entry = session.scalars(
            select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == tokens.CREATED)
        ).one()
    assert secret not in stored.token_hash
    assert secret not in str(vars(entry))
    assert entry.subject_id == stored.id


@pytest.mark.parametrize("other", ["", "cloister_", "cloister_x", "x" * 10_000, "\ud800"])
def test_an_unknown_token_acts_for_nobody(clinical_engine: Engine, secret: str, other: str) -> None:
    assert tokens.resolve(clinical_engine, other, now()) is None
    assert tokens.resolve(clinical_engine, secret + " ", now()) is None


def test_a_token_loses_what_its_user_loses(clinical_engine: Engine, ledger: Ledger, secret: str) -> None:
    with writing(clinical_engine) as session:
        user = users.find_user(session, "anna")
        users.set_rights(session, ledger, user, rights=[Right.VIEW, Right.MANAGE_USERS])
    found = tokens.resolve(clinical_engine, secret, now())
    assert found is not None
    assert found.principal.rights == {Right.VIEW}


def test_an_expired_token_is_refused(clinical_engine: Engine, ledger: Ledger, secret: str) -> None:
    short = make(clinical_engine, ledger, "short", days=1)
    assert tokens.resolve(clinical_engine, short, now() + timedelta(hours=23)) is not None
    assert tokens.resolve(clinical_engine, short, now() + timedelta(hours=25)) is None
    assert tokens.resolve(clinical_engine, secret, now() + timedelta(days=3000)) is not None


def test_a_revoked_token_is_refused_and_its_name_is_free(
    clinical_engine: Engine, ledger: Ledger, secret: str
) -> None:
    with pytest.raises(tokens.TokenError, match="already"):
        make(clinical_engine, ledger, "viewer")
    with writing(clinical_engine) as session:
        user = users.find_user(session, "anna")
        tokens.revoke(session, ledger, tokens.find(session, user, "viewer"))
    assert tokens.resolve(clinical_engine, secret, now()) is None
    assert make(clinical_engine, ledger, "viewer") != secret


def test_tokens_of_a_disabled_or_locked_user_are_refused(
    clinical_engine: Engine, ledger: Ledger, secret: str
) -> None:
    with writing(clinical_engine) as session:
        session.execute(update(User).values(locked_until=now() + timedelta(minutes=1)))
    assert tokens.resolve(clinical_engine, secret, now()) is None
    assert tokens.resolve(clinical_engine, secret, now() + timedelta(minutes=2)) is not None
    with writing(clinical_engine) as session:
        users.set_enabled(session, ledger, users.find_user(session, "anna"), enabled=False)
    assert tokens.resolve(clinical_engine, secret, now()) is None


def test_use_is_noted_at_most_once_a_minute(clinical_engine: Engine, secret: str) -> None:
    at = now()
    for seconds, noted in ((0, 0), (59, 0), (60, 60), (61, 60)):
        tokens.resolve(clinical_engine, secret, at + timedelta(seconds=seconds))
        with reading(clinical_engine) as session:
            last = session.scalars(select(AccessToken.last_used_at)).one()
        assert last == at + timedelta(seconds=noted)


def test_a_token_works_while_the_database_cannot_be_written(clinical_engine: Engine, secret: str) -> None:
    url = clinical_engine.url.render_as_string(hide_password=False)
    read_only = make_engine(url, read_only=True)
    assert tokens.resolve(read_only, secret, now()) is not None
    read_only.dispose()


@pytest.mark.parametrize(
    "values",
    [
        {"granted": [Right.MANAGE_USERS]},
        {"granted": []},
        {"days": 0},
        {"days": 4000},
        {"name": "a b"},
        {"name": ""},
    ],
)
def test_a_token_that_could_not_be_meant_is_not_made(
    clinical_engine: Engine, ledger: Ledger, secret: str, values: dict[str, object]
) -> None:
    with pytest.raises(tokens.TokenError):
        make(clinical_engine, ledger, **{"name": "other", **values})  # type: ignore[arg-type]


def test_names_of_rights_that_are_gone_grant_nothing() -> None:
    assert rights.parse(["view", "rule_the_world"]) == {Right.VIEW}


def test_tokens_are_made_listed_and_revoked_by_command(tmp_path: Path) -> None:
    def cloister(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli.build(), [*words, "--config", str(config)], input=stdin)

    config = tmp_path / "n" / "cloister.toml"
    assert CliRunner().invoke(cli.build(), ["init", str(tmp_path / "n")]).exit_code == 0
    cloister("user", "add", "anna", "--role", "radiologist", "--password-stdin", stdin=PASSWORD + "\n")
    made = cloister("user", "token", "create", "anna", "--name", "viewer", "--days", "30")
    assert made.exit_code == 0
    secret = made.output.strip()
    zone = node.open_clinical(load_settings(config))
    assert tokens.resolve(zone.engine, secret, now()) is not None
    listed = cloister("user", "token", "list", "--json")
    assert secret not in listed.output
    (row,) = json.loads(listed.output)
    assert (row["user"], row["name"], row["rights"]) == ("anna", "viewer", ["view", "view_identity"])
    assert row["expires_at"] > row["last_used_at"]
    assert "anna/viewer: view, view_identity; until 20" in cloister("user", "token", "list", "anna").output
    assert cloister("user", "token", "revoke", "anna", "--name", "viewer").exit_code == 0
    assert tokens.resolve(zone.engine, secret, now()) is None
    zone.engine.dispose()
    unknown = cloister("user", "token", "create", "anna", "--name", "x", "--rights", "view,fly")
    assert unknown.exit_code == 2
    assert "store_studies" in unknown.output
