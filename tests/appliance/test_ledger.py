from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from appliance.db import migrate
from appliance.db.engine import make_engine, writing
from appliance.ledger import Ledger, LedgerBodyError, commitment, verify
from appliance.ledger.chain import check_body

if TYPE_CHECKING:
    from sqlalchemy import Engine

SUBJECT = "a" * 32


def fill(engine: Engine, ledger: Ledger, count: int = 6) -> None:
    for number in range(count):
        with writing(engine) as session:
            ledger.append(session, kind="study.assembled", subject_id=SUBJECT, body={"instances": number})


def tamper(engine: Engine, statement: str, **values: Any) -> None:
    with writing(engine) as session:
        session.execute(text(statement), values)


def codes(engine: Engine, ledger: Ledger) -> set[str]:
    report = verify(engine, ledger.signing.public_key(), ledger.head_path)
    assert report.ok == (not report.problems)
    return {problem.code for problem in report.problems}


def test_an_untouched_ledger_verifies(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger)
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries, report.head_sequence, report.anchored_sequence) == (True, 6, 6, 6)


def test_an_empty_ledger_verifies(clinical_engine: Engine, ledger: Ledger) -> None:
    assert verify(clinical_engine, ledger.signing.public_key(), ledger.head_path).ok


@pytest.mark.parametrize("column", ["at", "kind", "actor", "subject_id", "body"])
@pytest.mark.parametrize("sequence", [1, 3, 6])
def test_a_changed_field_is_found(
    clinical_engine: Engine, ledger: Ledger, column: str, sequence: int
) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, f"UPDATE ledger_entry SET {column} = 'x' WHERE sequence = :s", s=sequence)  # noqa: S608 - column names of this test
    assert "content" in codes(clinical_engine, ledger)


@pytest.mark.parametrize("value", ["x'00ff'", "CAST(x'00ff' AS TEXT)", "7", "1.5"])
@pytest.mark.parametrize(
    "column", ["at", "kind", "actor", "subject_id", "body", "previous_hash", "entry_hash", "signature"]
)
def test_a_field_of_another_type_is_found(tmp_path: Path, ledger: Ledger, column: str, value: str) -> None:
    url = f"sqlite:///{tmp_path / 'clinical.db'}"
    migrate.upgrade(url, "clinical")
    engine = make_engine(url)
    fill(engine, ledger, 3)
    tamper(engine, f"UPDATE ledger_entry SET {column} = {value} WHERE sequence = 2")  # noqa: S608 - of this test
    report = verify(engine, ledger.signing.public_key(), ledger.head_path)
    assert {problem.sequence for problem in report.problems} & {2, 3}
    assert json.dumps(dataclasses.asdict(report))
    fill(engine, ledger, 1)
    assert "tail" not in codes(engine, ledger)
    engine.dispose()


def test_a_changed_and_rehashed_entry_is_found(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, "UPDATE ledger_entry SET entry_hash = :h WHERE sequence = 3", h="0" * 63 + "1")
    assert {"signature", "link"} <= codes(clinical_engine, ledger)


@pytest.mark.parametrize("sequence", [1, 2, 5])
def test_a_removed_entry_is_found(clinical_engine: Engine, ledger: Ledger, sequence: int) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, "DELETE FROM ledger_entry WHERE sequence = :s", s=sequence)
    assert {"missing", "link"} <= codes(clinical_engine, ledger)


def test_a_removed_entry_is_found_when_the_rest_is_renumbered(
    clinical_engine: Engine, ledger: Ledger
) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, "DELETE FROM ledger_entry WHERE sequence = 2")
    for number in range(3, 7):
        tamper(
            clinical_engine,
            "UPDATE ledger_entry SET sequence = :n WHERE sequence = :s",
            n=number - 1,
            s=number,
        )
    assert {"content", "link"} <= codes(clinical_engine, ledger)


def test_reordered_entries_are_found(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger)
    for old, new in ((2, 99), (3, 2), (99, 3)):
        tamper(clinical_engine, "UPDATE ledger_entry SET sequence = :n WHERE sequence = :s", n=new, s=old)
    assert "link" in codes(clinical_engine, ledger)


@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_cut_off_tail_is_found(clinical_engine: Engine, ledger: Ledger, left: int) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, "DELETE FROM ledger_entry WHERE sequence > :s", s=left)
    assert codes(clinical_engine, ledger) == {"tail"}


def test_a_tail_that_was_cut_off_and_grew_again_is_found(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger)
    tamper(clinical_engine, "DELETE FROM ledger_entry WHERE sequence > 4")
    saved = ledger.head_path.read_bytes()
    fill(clinical_engine, ledger, 2)
    ledger.head_path.write_bytes(saved)
    assert codes(clinical_engine, ledger) == {"tail"}


def test_an_entry_of_another_key_is_found(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger, 2)
    stranger = Ledger(ledger.model, Ed25519PrivateKey.generate(), ledger.salt, ledger.head_path)
    fill(clinical_engine, stranger, 1)
    assert "signature" in codes(clinical_engine, ledger)


def test_a_forged_head_is_found(clinical_engine: Engine, ledger: Ledger) -> None:
    fill(clinical_engine, ledger)
    content = json.loads(ledger.head_path.read_text())
    ledger.head_path.write_text(json.dumps({**content, "sequence": 4}))
    assert "head" in codes(clinical_engine, ledger)
    fill(clinical_engine, ledger, 1)
    shutil.copy(ledger.head_path, ledger.head_path.with_suffix(".kept"))
    ledger.head_path.write_text("rubbish")
    fill(clinical_engine, ledger, 1)
    assert ledger.head_path.read_text() == "rubbish"
    assert "head" in codes(clinical_engine, ledger)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"[]", b'{"sequence": "x"}'])
def test_a_head_that_cannot_be_read_is_named_with_what_to_do(
    clinical_engine: Engine, ledger: Ledger, content: bytes
) -> None:
    fill(clinical_engine, ledger)
    ledger.head_path.write_bytes(content)
    fill(clinical_engine, ledger, 1)
    (problem,) = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path).problems
    assert problem.code == "head"
    assert str(ledger.head_path) in problem.message
    assert "move the file away" in problem.message
    ledger.head_path.rename(ledger.head_path.with_suffix(".damaged"))
    fill(clinical_engine, ledger, 1)
    assert codes(clinical_engine, ledger) == set()


def test_head_and_folder_are_synced_before_and_after_the_rename(
    clinical_engine: Engine, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink()
        order.append(f"{'folder' if name.is_dir() else 'file'} {ledger.head_path.exists()}")
        real_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    fill(clinical_engine, ledger, 1)
    assert order == ["file False", "folder True"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_work_is_done_though_the_head_could_not_be_stored_and_the_next_entry_stores_it(
    clinical_engine: Engine, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fill(clinical_engine, ledger, 2)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        fill(clinical_engine, ledger, 1)
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries, report.anchored_sequence) == (True, 3, 2)
    fill(clinical_engine, ledger, 1)
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries, report.anchored_sequence) == (True, 4, 4)
    tamper(clinical_engine, "DELETE FROM ledger_entry WHERE sequence > 3")
    assert codes(clinical_engine, ledger) == {"tail"}


def test_an_entry_and_its_cause_are_stored_together(clinical_engine: Engine, ledger: Ledger) -> None:
    def fail_after_appending() -> None:
        with writing(clinical_engine) as session:
            ledger.append(session, kind="a", subject_id=SUBJECT)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_appending()
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries, report.anchored_sequence) == (True, 0, 0)


def test_several_entries_of_one_transaction_follow_each_other(
    clinical_engine: Engine, ledger: Ledger
) -> None:
    with writing(clinical_engine) as session:
        assert [ledger.append(session, kind="a") for _ in range(3)] == [1, 2, 3]
    assert codes(clinical_engine, ledger) == set()


def test_appenders_at_once_make_one_chain(clinical_engine: Engine, ledger: Ledger) -> None:
    threads = [threading.Thread(target=fill, args=(clinical_engine, ledger, 8)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = verify(clinical_engine, ledger.signing.public_key(), ledger.head_path)
    assert (report.ok, report.entries, report.anchored_sequence) == (True, 32, 32)


@pytest.mark.parametrize(
    "value",
    [
        "DOE^JANE",
        "Jane Doe",
        "1.2.840.113619.2.1",
        "19671224",
        "PAT-001",
        "free text",
        b"x",
        {"k v": 1},
        ["2.25.1"],
        "a" * 31 + "Z",
    ],
)
def test_a_body_takes_no_identifier(value: object) -> None:
    with pytest.raises(LedgerBodyError) as caught:
        check_body({"field": value})
    assert "DOE" not in str(caught.value)


def test_a_body_takes_ids_counts_codes_and_commitments() -> None:
    check_body(
        {"id": SUBJECT, "n": 3, "ok": True, "none": None, "code": "fed-avg", "list": [1, "x.y"], "f": 0.5}
    )


@given(
    st.binary(min_size=16, max_size=32), st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40)
)
def test_commitments_bind_and_hide(salt: bytes, one: str, other: str) -> None:
    assert commitment(salt, one) == commitment(salt, one)
    assert (commitment(salt, one) == commitment(salt, other)) == (one == other)
    assert len(commitment(salt, one)) == 64


def test_equal_values_of_different_rows_look_different(ledger: Ledger) -> None:
    assert ledger.commitment("a" * 32, "X") != ledger.commitment("b" * 32, "X")
