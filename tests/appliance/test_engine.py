from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from appliance.db.clinical import Rule
from appliance.db.engine import make_engine, reading, writing

if TYPE_CHECKING:
    from sqlalchemy import Engine


def add(engine: Engine, name: str) -> None:
    with writing(engine) as session:
        session.add(Rule(name=name))


def names(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return list(session.scalars(select(Rule.name).order_by(Rule.name)))


def test_a_transaction_is_kept_whole(clinical_engine: Engine) -> None:
    add(clinical_engine, "a")
    assert names(clinical_engine) == ["a"]


def test_an_exception_rolls_everything_back(clinical_engine: Engine) -> None:
    def fail_half_way() -> None:
        with writing(clinical_engine) as session:
            session.add(Rule(name="a"))
            session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert names(clinical_engine) == []


def test_a_reader_cannot_write(clinical_engine: Engine) -> None:
    with reading(clinical_engine) as session:
        session.add(Rule(name="a"))
        with pytest.raises(DBAPIError):
            session.commit()
    add(clinical_engine, "b")  # and the connection writes again afterwards
    assert names(clinical_engine) == ["b"]


def test_a_read_only_engine_cannot_write_at_all(clinical_url: str) -> None:
    engine = make_engine(clinical_url, read_only=True)
    with pytest.raises(DBAPIError):
        add(engine, "a")
    assert names(engine) == []
    engine.dispose()


def test_sqlite_keeps_what_it_acknowledged(tmp_path: os.PathLike[str]) -> None:
    engine = make_engine(f"sqlite:///{os.fspath(tmp_path)}/a.db")
    with writing(engine) as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    engine.dispose()


def test_writers_wait_for_each_other_and_none_is_lost(clinical_engine: Engine) -> None:
    def many(prefix: str) -> None:
        for index in range(15):
            add(clinical_engine, f"{prefix}{index}")

    threads = [threading.Thread(target=many, args=(prefix,)) for prefix in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(clinical_engine)) == 60


def test_a_reader_sees_one_moment_while_a_writer_goes_on(clinical_engine: Engine) -> None:
    count = select(func.count()).select_from(Rule)
    with reading(clinical_engine) as session:
        assert session.scalar(count) == 0
        add(clinical_engine, "a")
        assert session.scalar(count) == 0
    assert names(clinical_engine) == ["a"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_engine_works_on_both_sides_of_a_fork(clinical_engine: Engine) -> None:
    add(clinical_engine, "before")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            add(clinical_engine, "child")
            code = 0
        finally:
            os._exit(code)
    add(clinical_engine, "parent")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert names(clinical_engine) == ["before", "child", "parent"]


def test_postgresql_urls_mean_the_psycopg_driver() -> None:
    engine = make_engine("postgresql://localhost/x")
    assert engine.driver == "psycopg"
    engine.dispose()
