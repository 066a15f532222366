from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from appliance import keys, ledger
from appliance.db.coordinator import CoordinatorLedgerEntry, MemberState
from appliance.db.engine import reading, writing
from appliance.federation import members
from appliance.federation.book import open_ledger
from appliance.federation.errors import MembershipError

if TYPE_CHECKING:
    from appliance.federation.book import Book
    from appliance.ledger import Ledger

END = datetime(2031, 5, 1, tzinfo=UTC)
FIRST = members.Certificate("a1", END)


@pytest.fixture
def chain(book: Book) -> Ledger:
    keys.create_research_keys(book.root)
    return open_ledger(book.root)


def new_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def shown(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def admit(book: Book, chain: Ledger, site: str, key: str | None = None) -> members.MemberView:
    with writing(book.engine) as session:
        return members.admit(session, chain, site, FIRST, key)


def recorded(book: Book) -> list[str]:
    with reading(book.engine) as session:
        return list(
            session.scalars(select(CoordinatorLedgerEntry.kind).order_by(CoordinatorLedgerEntry.sequence))
        )


def test_a_member_is_found_with_its_key_and_its_joining_stands_in_the_ledger(
    book: Book, chain: Ledger
) -> None:
    key = new_key()

    joined = admit(book, chain, "St-Marys", shown(key))

    assert members.find(book.engine, "St-Marys") == joined
    assert members.members(book.engine) == (joined,)
    assert members.active(book.engine) == {"St-Marys"}
    members.signing_key(book.engine, "St-Marys").verify(key.sign(b"receipt"), b"receipt")
    assert recorded(book) == [members.MEMBER_JOINED]
    assert ledger.verify(book.engine, chain.signing.public_key(), chain.head_path).ok


def test_a_changed_signing_key_is_refused_and_recorded(book: Book, chain: Ledger) -> None:
    first, second = shown(new_key()), shown(new_key())
    admit(book, chain, "north")
    with pytest.raises(MembershipError, match="not known"):
        members.signing_key(book.engine, "north")

    members.pin(book.engine, chain, "north", first)
    members.pin(book.engine, chain, "north", first)
    with pytest.raises(MembershipError, match="another signing key"):
        members.pin(book.engine, chain, "north", second)

    assert members.signing_key(book.engine, "north").public_bytes_raw().hex() == first
    assert recorded(book) == [members.MEMBER_JOINED, members.KEY_PINNED, members.KEY_REFUSED]


def test_a_site_that_left_may_come_back_with_its_key_alone_and_an_expelled_one_never(
    book: Book, chain: Ledger
) -> None:
    key = shown(new_key())
    admit(book, chain, "north", key)
    left = members.end(book.engine, chain, "north", MemberState.LEFT)
    assert (left.state, left.left_at is None) == (MemberState.LEFT, False)
    assert members.active(book.engine) == frozenset()

    with pytest.raises(MembershipError, match="another signing key"):
        admit(book, chain, "north", shown(new_key()))
    assert admit(book, chain, "north", key).state == MemberState.ACTIVE
    members.end(book.engine, chain, "north", MemberState.EXPELLED)

    with pytest.raises(MembershipError, match="expelled"):
        admit(book, chain, "north", key)
    with pytest.raises(MembershipError, match="expelled"):
        members.end(book.engine, chain, "north", MemberState.LEFT)
    assert recorded(book) == [
        members.MEMBER_JOINED,
        members.MEMBER_LEFT,
        members.MEMBER_JOINED,
        members.MEMBER_EXPELLED,
    ]


def test_after_a_renewal_the_old_certificate_is_good_beside_the_new_one(book: Book, chain: Ledger) -> None:
    admit(book, chain, "north")

    with writing(book.engine) as session:
        members.renew(session, chain, "north", "a1", members.Certificate("b2", END))
    with writing(book.engine) as session:  # the answer was lost: asked again with the old one
        members.renew(session, chain, "north", "a1", members.Certificate("c3", END))

    found = members.find(book.engine, "north")
    assert found is not None
    assert found.serials == ("c3", "a1")


@pytest.mark.parametrize("key", ["", "AB" * 32, "0" * 63, "g" * 64], ids=["empty", "upper", "short", "hex"])
def test_what_is_no_key_is_not_pinned(book: Book, chain: Ledger, key: str) -> None:
    admit(book, chain, "north")

    with pytest.raises(MembershipError, match="64 lower-case"):
        members.pin(book.engine, chain, "north", key)


@pytest.mark.parametrize("state", [MemberState.LEFT, MemberState.EXPELLED])
def test_nobody_ends_the_membership_of_a_stranger(book: Book, chain: Ledger, state: MemberState) -> None:
    with pytest.raises(MembershipError, match="no member"):
        members.end(book.engine, chain, "nobody", state)
