from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.federation import joincode
from appliance.federation.errors import EnrolmentError
from appliance.federation.joincode import ALPHABET, JoinCode

CODE = JoinCode("hub.example-clinic.org", 8443, *joincode.new_secrets(), joincode.shortened(b"\x5a" * 32))


def test_a_code_reads_back_as_it_was_made_and_shows_its_secret_in_no_log() -> None:
    assert joincode.parse(str(CODE)) == CODE
    assert CODE.secret not in repr(CODE)
    assert len(str(CODE)) == len("hub.example-clinic.org:8443/") + 40 + 7


def test_what_a_person_types_for_a_letter_is_read_as_meant() -> None:
    code = JoinCode("hub", 1, "01010", "0" * 15, "1" * 16)
    typed = str(code).replace("-", " ").lower().replace("0", "o").replace("hub:1/", "HUB:1/")

    head, _, letters = typed.partition("/")

    assert joincode.parse(f"  {head}/{letters.replace('1', 'l')} ") == code


@given(st.integers(0, 39), st.sampled_from(ALPHABET))
def test_one_wrong_letter_is_noticed(place: int, letter: str) -> None:
    head, _, letters = str(CODE).partition("/")
    plain = letters.replace("-", "")
    wrong = plain[:place] + letter + plain[place + 1 :]
    if wrong == plain:
        return

    with pytest.raises(EnrolmentError, match="wrong"):
        joincode.parse(f"{head}/{wrong}")


@pytest.mark.parametrize(
    ("old", "new"), [("hub.", "hut."), (":8443", ":8442")], ids=["other host", "other port"]
)
def test_a_wrong_host_or_port_is_noticed(old: str, new: str) -> None:
    with pytest.raises(EnrolmentError, match="host or the port"):
        joincode.parse(str(CODE).replace(old, new))


@given(st.text(max_size=120))
def test_other_texts_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(EnrolmentError, match="code: "):
        joincode.parse(text)


@pytest.mark.parametrize(
    "head", ["", ":1", "hub", "hub:", "hub:0", "hub:65536", "hub:²", "-hub:1", "hub;rm:1", "a" * 500 + ":1"]
)
def test_an_address_that_is_none_is_refused(head: str) -> None:
    with pytest.raises(EnrolmentError, match="code: "):
        joincode.parse(f"{head}/{str(CODE).partition('/')[2]}")


def test_the_fingerprint_is_the_first_eighty_bits() -> None:
    digest = hashlib.sha256(b"root").digest()
    number = 0
    for letter in joincode.shortened(digest):
        number = number * 32 + ALPHABET.index(letter)

    assert number.to_bytes(10) == digest[:10]
