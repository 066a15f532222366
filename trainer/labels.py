"""Labels from a CSV file. Wrong rows are reported by line and left out; no message repeats a value.

Columns: ``patient_id``, ``label``, ``value`` (0 or 1), and optionally ``issuer`` and ``study_instance_uid``;
separated by comma, semicolon or tab, UTF-8. A row without a study speaks for all studies of the patient;
where both are there, the row of the study is the more specific one.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer.errors import LabelFileError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from pathlib import Path

REQUIRED: Final = ("patient_id", "label", "value")
OPTIONAL: Final = ("issuer", "study_instance_uid")
MAX_BYTES: Final = 64 * 2**20

_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+\Z")  # PS3.5 9.1
_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class LabelRow:
    """One accepted row; ``line`` counts from 1, the header included."""

    line: int
    patient_id: str
    issuer: str
    study_instance_uid: str
    name: str
    value: int

    @property
    def key(self) -> _Key:
        """What may have only one value."""
        return (self.issuer, self.patient_id, self.study_instance_uid, self.name)


@dataclass(frozen=True)
class LabelProblem:
    """Why a line was left out. ``message`` is for people and holds no value of the file."""

    line: int
    code: str
    message: str


@dataclass(frozen=True)
class LabelTable:
    """Accepted rows in the order of the file, and the problems by line."""

    rows: tuple[LabelRow, ...]
    problems: tuple[LabelProblem, ...]


def read_labels_csv(path: Path) -> LabelTable:
    """Read a label file.

    With a wrong header nothing is accepted: a misspelt ``study_instance_uid`` would silently turn labels of
    studies into labels of patients. Of contradictory rows none is accepted, of equal rows the first.

    Raises
    ------
    LabelFileError
        If the file cannot be read, is larger than 64 MiB or is not UTF-8 text.
    """
    records = _records(_text_of(path))
    header_line, header = next(records, (1, []))
    if header is None:
        return LabelTable((), (_malformed(header_line),))
    columns = [name.strip().lower() for name in header]
    problems = list(_header_problems(header_line, columns))
    if problems:
        return LabelTable((), tuple(problems))
    rows: list[LabelRow] = []
    for line, fields in records:
        parsed = _malformed(line) if fields is None else _parse(line, columns, fields)
        if isinstance(parsed, LabelRow):
            rows.append(parsed)
        else:
            problems.append(parsed)
    clashes = conflicts((row.line, row.key, row.value) for row in rows)
    left_out = {problem.line for problem in clashes}
    accepted = tuple(row for row in rows if row.line not in left_out)
    return LabelTable(accepted, tuple(sorted([*problems, *clashes], key=lambda problem: problem.line)))


def conflicts(rows: Iterable[tuple[int, Hashable, int]]) -> list[LabelProblem]:
    """Return the lines to leave out of what says something about the same thing more than once.

    Parameters
    ----------
    rows : iterable of (int, hashable, int)
        Line, what it is about, value. Contradictory lines are all left out, of equal ones the first stays.
    """
    groups: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for line, key, value in rows:
        groups[key].append((line, value))
    problems: list[LabelProblem] = []
    for group in groups.values():
        if len({value for _, value in group}) > 1:
            lines = ", ".join(str(line) for line, _ in group[:10])
            message = f"lines {lines} contradict one another; none of them is used"
            problems.extend(LabelProblem(line, "contradiction", message) for line, _ in group)
        else:
            message = f"says the same as line {group[0][0]}"
            problems.extend(LabelProblem(line, "duplicate", message) for line, _ in group[1:])
    return problems


def _malformed(line: int) -> LabelProblem:
    return LabelProblem(line, "malformed", "the file cannot be parsed as CSV from here on")


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelFileError(f"the label file is larger than {MAX_BYTES} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LabelFileError(f"the label file cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise LabelFileError("the label file is not UTF-8 text") from error


def _records(text: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield (line on which the record starts, fields) without blank lines; None: not CSV from here."""
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error:
        yield line, None


def _header_problems(line: int, columns: Sequence[str]) -> Iterator[LabelProblem]:
    known = {*REQUIRED, *OPTIONAL}
    for position, name in enumerate(columns, start=1):
        if name not in known:
            expected = ", ".join((*REQUIRED, *OPTIONAL))
            yield LabelProblem(line, "unknown_column", f"column {position} is not known; expected {expected}")
    for name in sorted(known):
        if columns.count(name) > 1:
            yield LabelProblem(line, "repeated_column", f"column {name} stands there more than once")
    for name in REQUIRED:
        if name not in columns:
            yield LabelProblem(line, "missing_column", f"column {name} is missing")


def _parse(line: int, columns: Sequence[str], fields: Sequence[str]) -> LabelRow | LabelProblem:
    if len(fields) != len(columns):
        return LabelProblem(line, "wrong_width", f"{len(fields)} fields; expected {len(columns)}")
    row = dict(zip(columns, (field.strip() for field in fields), strict=True))
    uid = row.get("study_instance_uid", "")
    issuer = row.get("issuer", "")
    checks = (
        (row["patient_id"] != "", "missing_patient_id", "patient_id is empty"),
        (_is_lo(row["patient_id"]), "bad_patient_id", "patient_id is not a PatientID (PS3.5 6.2, LO)"),
        (_is_lo(issuer), "bad_issuer", "issuer is not an IssuerOfPatientID (PS3.5 6.2, LO)"),
        (
            not uid or (len(uid) <= 64 and _UID.match(uid) is not None),
            "bad_study_instance_uid",
            "study_instance_uid is not a UID (PS3.5 9.1)",
        ),
        (
            _LABEL_NAME.match(row["label"]) is not None,
            "bad_label",
            "label is not a name of up to 64 letters, digits, points, hyphens and underscores",
        ),
        (row["value"] in {"0", "1"}, "bad_value", "value is not 0 or 1"),
    )
    for good, code, message in checks:
        if not good:
            return LabelProblem(line, code, message)
    return LabelRow(line, row["patient_id"], issuer, uid, row["label"], int(row["value"]))


def _is_lo(value: str) -> bool:
    return len(value) <= 64 and "\\" not in value and (value.isprintable() or value == "")
