from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer import vault
from anonymizer.errors import SealError

KEY = b"v" * 32


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_what_was_sealed_opens_with_key_and_context(plaintext: bytes, context: bytes) -> None:
    assert vault.open(KEY, vault.seal(KEY, plaintext, context), context) == plaintext


def test_two_seals_of_the_same_look_different() -> None:
    first, second = vault.seal(KEY, b"Doe", b"c"), vault.seal(KEY, b"Doe", b"c")
    assert first.nonce != second.nonce
    assert first.ciphertext != second.ciphertext


@pytest.mark.parametrize("change", ["key", "context", "ciphertext", "nonce", "not hexadecimal"])
def test_anything_else_does_not_open(change: str) -> None:
    sealed, key, context = vault.seal(KEY, b"Doe", b"c"), KEY, b"c"
    if change == "key":
        key = b"w" * 32
    elif change == "context":
        context = b"d"
    elif change == "ciphertext":
        sealed = replace(sealed, ciphertext="00" + sealed.ciphertext[2:])
    elif change == "nonce":
        sealed = replace(sealed, nonce="00" * 12)
    else:
        sealed = replace(sealed, nonce="zz")
    with pytest.raises(SealError):
        vault.open(key, sealed, context)


def test_the_key_s_name_tells_nothing_of_the_key() -> None:
    assert vault.key_id(KEY) == vault.seal(KEY, b"", b"").key_id
    assert KEY.hex() not in vault.key_id(KEY)
    assert len(vault.key_id(KEY)) == 16


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(SealError):
        vault.seal(b"short", b"", b"")
