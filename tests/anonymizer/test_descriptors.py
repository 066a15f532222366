"""Free text: the vocabulary decides word by word, and never for a word that names somebody here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.descriptors import clean_line, cleaned_text, may_stay_whole, vocabulary
from anonymizer.subject import Subject, fold

SUBJECT = Subject.of(["Müller^Hans=山田^太郎", "Brain^Ann"], ["MRN-4711-X", "00099"])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("CT THORAX/ABDOMEN mit KM", "CT THORAX/ABDOMEN mit KM"),
        ("AX T1 3D MPRAGE 1mm", "AX T1 3D MPRAGE 1mm"),
        ("C-Spine [AP] 5.0 B31f", "C-Spine [AP] 5.0 B31f"),
        ("ep2d_diff_b1000", "ep2d_diff_b1000"),
        ("PELVIS W/O CONT", "PELVIS W/O CONT"),
        ("Schädel nativ", "Schädel nativ"),
        ("Dr. Meier wants CT abdomen", "Dr CT abdomen"),
        ("Müller head", "head"),
        ("MÜLLER Head", "Head"),
        ("brain w/o", "w/o"),
        ("hans chest", "chest"),
        ("MRN4711X head", "head"),
        ("head 4711", "head"),
        ("head 99", "head"),
        ("Follow up 12.05.1970", "Follow up"),
        ("Follow up 1970-05-12", "Follow up"),
        ("chest 09:45", "chest"),
        ("chest 1970", "chest"),
        ("0171 123 4567 chest", "chest"),
        ("chest 12345678", "chest"),
        ("P1234 chest", "chest"),
        ("太郎 chest", "chest"),
        ("J Smith", ""),
        ("", ""),
        ("...", ""),
    ],
)
def test_a_line_keeps_what_describes_images(text: str, kept: str) -> None:
    assert clean_line(text, SUBJECT) == kept


def test_doctor_is_no_word_of_the_vocabulary_by_accident() -> None:
    assert {"meier", "smith", "john", "klinik", "hospital", "university"}.isdisjoint(vocabulary())


def test_longer_texts_stay_whole_or_not_at_all() -> None:
    assert may_stay_whole("Chest without contrast.", Subject())
    assert cleaned_text("No finding.\r\nLung normal.", "UT", Subject()) == "No finding.\r\nLung normal."
    assert cleaned_text("No sign of Smith's fracture.", "UT", Subject()) is None


def test_several_values_stay_several() -> None:
    assert cleaned_text("chest\\Smith\\head", "LO", Subject()) == "chest\\\\head"


@given(st.text(max_size=60))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_line(text, SUBJECT)
    assert clean_line(once, SUBJECT) == once


@given(st.text(max_size=60))
def test_no_word_of_the_subject_is_ever_left(text: str) -> None:
    left = clean_line(f"chest {text} Müller", SUBJECT)
    assert "müller" not in fold(left).split()
