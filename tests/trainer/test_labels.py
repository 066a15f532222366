from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import LabelFileError
from trainer.labels import LabelTable, read_labels_csv

if TYPE_CHECKING:
    from pathlib import Path

UID = "1.2.840.1"


def read(folder: Path, text: str | bytes) -> LabelTable:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels_csv(path)


def codes(table: LabelTable) -> list[tuple[int, str]]:
    return [(problem.line, problem.code) for problem in table.problems]


def test_rows_are_read_in_order_with_their_lines(tmp_path: Path) -> None:
    table = read(
        tmp_path, f"patient_id,issuer,study_instance_uid,label,value\nP1,A,{UID},mass,1\n\n P2 ,,,mass,0\n"
    )
    assert [(r.line, r.patient_id, r.issuer, r.study_instance_uid, r.name, r.value) for r in table.rows] == [
        (2, "P1", "A", UID, "mass", 1),
        (4, "P2", "", "", "mass", 0),
    ]
    assert table.problems == ()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_byte_order_mark_and_other_delimiters_are_read(tmp_path: Path, delimiter: str) -> None:
    text = "\ufeffPatient_ID,label,value\r\nP1,mass,1\r\n".replace(",", delimiter)
    assert len(read(tmp_path, text).rows) == 1


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (f",A,{UID},mass,1", "missing_patient_id"),
        (f"P\\Q,A,{UID},mass,1", "bad_patient_id"),
        (f'"P\n1",A,{UID},mass,1', "bad_patient_id"),
        (f"{'P' * 65},A,{UID},mass,1", "bad_patient_id"),
        (f"P1,A\\B,{UID},mass,1", "bad_issuer"),
        ("P1,A,../../etc/passwd,mass,1", "bad_study_instance_uid"),
        ("P1,A,1.02,mass,1", "bad_study_instance_uid"),
        (f"P1,A,{UID},,1", "bad_label"),
        (f"P1,A,{UID},=cmd(),1", "bad_label"),
        (f"P1,A,{UID},mass,2", "bad_value"),
        (f"P1,A,{UID},mass,", "bad_value"),
        (f"P1,A,{UID},mass,1.0", "bad_value"),
        (f"P1,A,{UID},mass", "wrong_width"),
        (f"P1,A,{UID},mass,1,x", "wrong_width"),
    ],
)
def test_a_wrong_row_is_reported_by_line_and_the_others_count(tmp_path: Path, row: str, code: str) -> None:
    table = read(
        tmp_path, f"patient_id,issuer,study_instance_uid,label,value\nP9,,,mass,0\n{row}\nP8,,,mass,1\n"
    )
    assert codes(table) == [(3, code)]
    assert [r.patient_id for r in table.rows] == ["P9", "P8"]


def test_contradictory_rows_are_all_refused_and_all_reported(tmp_path: Path) -> None:
    table = read(tmp_path, "patient_id,label,value\nP1,mass,1\nP2,mass,0\nP1,mass,0\nP1,mass,1\n")
    assert codes(table) == [(2, "contradiction"), (4, "contradiction"), (5, "contradiction")]
    assert [r.patient_id for r in table.rows] == ["P2"]


def test_equal_rows_count_once(tmp_path: Path) -> None:
    table = read(tmp_path, "patient_id,label,value\nP1,mass,1\nP1,mass,1\n")
    assert codes(table) == [(3, "duplicate")]
    assert len(table.rows) == 1


def test_patients_of_two_issuers_are_two_patients(tmp_path: Path) -> None:
    table = read(tmp_path, "patient_id,issuer,label,value\nP1,A,mass,1\nP1,B,mass,0\n")
    assert (len(table.rows), table.problems) == (2, ())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("patient_id,label,value,comment", [(1, "unknown_column")]),
        ("patient_id,label", [(1, "missing_column")]),
        ("patient_id,label,value,value", [(1, "repeated_column")]),
        ("patient_id,study_uid,label,value", [(1, "unknown_column")]),
    ],
)
def test_with_a_wrong_header_nothing_is_accepted(
    tmp_path: Path, header: str, expected: list[tuple[int, str]]
) -> None:
    table = read(tmp_path, f"{header}\nP1,mass,1,1\n")
    assert codes(table) == expected
    assert table.rows == ()


def test_an_empty_file_is_a_problem(tmp_path: Path) -> None:
    assert codes(read(tmp_path, "")) == [(1, "missing_column")] * 3


def test_an_open_quote_ends_the_reading_with_its_line(tmp_path: Path) -> None:
    table = read(tmp_path, 'patient_id,label,value\nP1,mass,1\nP2,"mass,1\nP3,mass,0\n')
    assert codes(table) == [(3, "malformed")]
    assert len(table.rows) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"patient_id,label,value\n\xe9,mass,1\n"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(LabelFileError, match="UTF-8"):
        read(tmp_path, content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelFileError):
        read_labels_csv(tmp_path / "none.csv")


@given(content=st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_bytes(b"patient_id,label,value\n" + content)
    try:
        table = read_labels_csv(path)
    except LabelFileError:
        return
    assert all(row.value in {0, 1} for row in table.rows)


def test_no_problem_repeats_a_value(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "patient_id,label,value\nSECRET\\1,mass,1\nSECRET2,mass,SECRET3\nSECRET4,SECRET 5,1\n"
        "SECRET6,mass,1\nSECRET6,mass,0\nSECRET7,mass,1,SECRET8\n",
    )
    assert len(table.problems) == 6
    assert "SECRET" not in repr(table.problems)


def test_an_unknown_column_is_not_named_since_it_may_be_a_value(tmp_path: Path) -> None:
    table = read(tmp_path, "SECRET1,mass,1\nSECRET2,mass,0\n")
    assert table.rows == ()
    assert "SECRET" not in repr(table.problems)
