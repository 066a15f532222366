from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance.auth import (
    ROLES,
    LockedOutError,
    PasswordError,
    Right,
    SignIn,
    SignInError,
    UserError,
    resolve,
    rights,
    sessions,
    sign_in,
    sign_out,
    users,
)
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.people import User, UserSession
from appliance.ledger import verify

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

    from appliance.ledger import Ledger

PASSWORD = "correct horse battery"


@pytest.fixture
def anna(clinical_engine: Engine, ledger: Ledger) -> str:
    with writing(clinical_engine) as session:
        return users.add_user(
            session, ledger, name="anna", password=PASSWORD, rights=[Right.VIEW, Right.APPROVE_MODEL]
        ).id


def enter(engine: Engine, ledger: Ledger, password: str = PASSWORD, at: datetime | None = None) -> SignIn:
    return sign_in(engine, ledger, name="anna", password=password, hours=8, at=at or now())


def test_the_right_password_opens_a_session(clinical_engine: Engine, ledger: Ledger, anna: str) -> None:
    found = enter(clinical_engine, ledger)
    principal = resolve(clinical_engine, found.token, now())
    assert principal == found.principal
    assert principal is not None
    assert principal.user_id == anna
    assert principal.may(Right.APPROVE_MODEL)
    assert not principal.may(Right.REIDENTIFY)


def test_the_database_holds_neither_password_nor_cookie(
    clinical_engine: Engine, ledger: Ledger, anna: str
) -> None:
    token = enter(clinical_engine, ledger).token
    with reading(clinical_engine) as session:
        user = session.scalars(select(User)).one()
        stored = session.scalars(select(UserSession)).one()
    assert user.password_hash.startswith("$argon2id$")
    assert token not in stored.token_hash


@pytest.mark.parametrize("password", ["", "wrong", PASSWORD + " ", "x" * 10_000])
def test_a_wrong_password_is_refused(
    clinical_engine: Engine, ledger: Ledger, anna: str, password: str
) -> None:
    with pytest.raises(SignInError, match="name or password"):
        enter(clinical_engine, ledger, password)


def test_an_unknown_name_is_refused_with_the_same_words(clinical_engine: Engine, ledger: Ledger) -> None:
    with pytest.raises(SignInError, match="name or password"):
        enter(clinical_engine, ledger)


def test_five_wrong_passwords_lock_out_even_the_right_one_for_a_while(
    clinical_engine: Engine, ledger: Ledger, anna: str
) -> None:
    at = now()
    for _ in range(sessions.ATTEMPTS):
        with pytest.raises(SignInError):
            enter(clinical_engine, ledger, "wrong", at)
    with pytest.raises(LockedOutError) as caught:
        enter(clinical_engine, ledger, at=at)
    assert caught.value.until == at + timedelta(seconds=60)
    later = at + timedelta(seconds=61)
    with pytest.raises(SignInError):
        enter(clinical_engine, ledger, "wrong", later)
    with pytest.raises(LockedOutError):
        enter(clinical_engine, ledger, at=later + timedelta(seconds=119))
    assert enter(clinical_engine, ledger, at=later + timedelta(seconds=121))


def test_a_session_ends_with_its_time_with_sign_out_and_with_the_user(
    clinical_engine: Engine, ledger: Ledger, anna: str
) -> None:
    first, second, third = (enter(clinical_engine, ledger) for _ in range(3))
    assert resolve(clinical_engine, first.token, now() + timedelta(hours=8, seconds=1)) is None
    sign_out(clinical_engine, first.token)
    assert resolve(clinical_engine, first.token, now()) is None
    assert resolve(clinical_engine, second.token, now()) is not None
    with writing(clinical_engine) as session:
        users.set_enabled(session, ledger, users.find_user(session, "anna"), enabled=False)
    assert resolve(clinical_engine, third.token, now()) is None
    with pytest.raises(SignInError):
        enter(clinical_engine, ledger)


def test_a_new_password_ends_all_sessions(clinical_engine: Engine, ledger: Ledger, anna: str) -> None:
    token = enter(clinical_engine, ledger).token
    with writing(clinical_engine) as session:
        users.set_password(session, ledger, users.find_user(session, "anna"), password="another long one")
    assert resolve(clinical_engine, token, now()) is None
    with pytest.raises(SignInError):
        enter(clinical_engine, ledger)
    assert enter(clinical_engine, ledger, "another long one")


def test_rights_that_were_taken_are_gone_at_once(clinical_engine: Engine, ledger: Ledger, anna: str) -> None:
    token = enter(clinical_engine, ledger).token
    with writing(clinical_engine) as session:
        users.set_rights(session, ledger, users.find_user(session, "anna"), rights=[Right.VIEW])
    principal = resolve(clinical_engine, token, now())
    assert principal is not None
    assert principal.rights == frozenset({Right.VIEW})


@pytest.mark.parametrize("token", [None, "", "x", "x" * 5000])
def test_no_or_a_false_cookie_is_nobody(clinical_engine: Engine, token: str | None) -> None:
    assert resolve(clinical_engine, token, now()) is None


@pytest.mark.parametrize("name", ["", "Anna", "a b", "a" * 65, "ä", "../x", "-a"])
def test_a_malformed_name_is_refused(clinical_engine: Engine, ledger: Ledger, name: str) -> None:
    with pytest.raises(UserError), writing(clinical_engine) as session:
        users.add_user(session, ledger, name=name, password=PASSWORD, rights=[])


def test_a_name_is_given_once(clinical_engine: Engine, ledger: Ledger, anna: str) -> None:
    with pytest.raises(UserError, match="taken"), writing(clinical_engine) as session:
        users.add_user(session, ledger, name="anna", password=PASSWORD, rights=[])


@pytest.mark.parametrize("password", ["x7!", "aaaaaaaaaaaaaaaa", "annaannaanna", "x" * 257])
def test_a_poor_password_is_refused(clinical_engine: Engine, ledger: Ledger, password: str) -> None:
    with pytest.raises(PasswordError) as caught, writing(clinical_engine) as session:
        users.add_user(session, ledger, name="anna", password=password, rights=[])
    assert password not in str(caught.value)


def test_what_concerns_users_stands_in_the_ledger(clinical_engine: Engine, ledger: Ledger, anna: str) -> None:
    enter(clinical_engine, ledger)
    with writing(clinical_engine) as session:
        users.set_password(session, ledger, users.find_user(session, "anna"), password="another long one")
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries) == (True, 3)


def test_every_right_belongs_to_some_role_and_unknown_ones_grant_nothing() -> None:
    assert frozenset().union(*(granted for role, granted in ROLES.items() if role != "admin")) == set(Right)
    assert rights.parse(["view", "everything", "*"]) == {Right.VIEW}
