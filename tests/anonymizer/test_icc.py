"""ICC profiles: colours stay, texts go, what is no profile goes whole."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from anonymizer import icc
from tests.anonymizer.material import ct, release

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_the_colours_of_a_profile_stay_the_same() -> None:
    made = icc.cleaned(SRGB)
    assert made is not None
    picture = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    lab = ImageCms.createProfile("LAB")
    before, after = (
        ImageCms.applyTransform(picture, ImageCms.buildTransform(io.BytesIO(raw), lab, "RGB", "LAB"))
        for raw in (SRGB, made)
    )
    assert before is not None
    assert after is not None
    assert before.tobytes() == after.tobytes()


def test_texts_dates_and_makers_of_a_profile_go() -> None:
    assert b"sRGB" in SRGB.replace(b"\0", b"")
    made = icc.cleaned(SRGB)
    assert made is not None
    assert len(made) == len(SRGB)
    assert b"sRGB" not in made.replace(b"\0", b"")
    assert made[24:36] == bytes(12)
    assert icc.cleaned(made) == made


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"Mustermann",
        bytes(200),
        SRGB[:100],
        SRGB[:-4],
        SRGB[:128] + struct.pack(">L", 9999) + SRGB[132:],
    ],
    ids=["empty", "text", "zeros", "header", "cut", "tags"],
)
def test_what_is_no_profile_is_none(raw: bytes) -> None:
    assert icc.cleaned(raw) is None


@given(st.lists(st.tuples(st.integers(0, len(SRGB) - 1), st.integers(0, 255)), max_size=8))
def test_whatever_the_bytes_an_answer_comes(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(SRGB)
    for at, value in changes:
        raw[at] = value
    made = icc.cleaned(bytes(raw))
    assert made is None or len(made) <= len(raw)


def test_an_instance_loses_text_in_the_place_of_a_profile() -> None:
    ds = ct()
    ds.ICCProfile = b"Mustermann in a profile"
    assert "ICCProfile" not in release(ds).ds
