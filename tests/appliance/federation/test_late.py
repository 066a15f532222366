from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select

from appliance.consortium.block import Statement
from appliance.db.base import now
from appliance.db.coordinator import CoordinatorLedgerEntry
from appliance.db.engine import reading
from appliance.federation import progress, provision
from appliance.federation.book import Book, Checkpoint, Counted, open_book
from appliance.federation.late import REASON, UPDATE_LATE, Late
from appliance.federation.shelf import Carriage
from tests.appliance.federation.scripted import said
from tests.trainer.federation.plans import make_plan
from trainer.federation import aggregation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.federation.answers import Answer

MODEL = {"weight": np.zeros((2, 2), np.float32)}
DELTA = {"weight": np.ones((2, 2), np.float32)}
PLAN = make_plan()


def late_answer(site: str, number: int, /, **changes: Any) -> Answer:
    """Return an update with what its site signed; ``changes`` are of the statement."""
    zeros = "0" * 64
    statement = Statement(zeros, site, "train", number, PLAN.sha256, zeros, zeros, zeros, zeros, 12, 1, zeros)
    answer = said(site, arrays=DELTA)
    signed = {"statement": asdict(replace(statement, **changes)), "signature": "0" * 128}
    return replace(answer, said=replace(answer.said, statement=signed, samples=12))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    opened = open_book(provision.create(tmp_path / "coordinator"))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def run_id(book: Book) -> str:
    run_id = book.add_run(PLAN, MODEL)
    book.set_job(run_id, "job")
    return run_id


def finish(book: Book, run_id: str, number: int, *sites: str) -> None:
    counted = [Counted(site, 12, "a" * 64, 16, {}, None, {}) for site in sites]
    book.finish_round(run_id, "job", Checkpoint(number, MODEL, {}, ""), counted, now())


def places(book: Book, run_id: str) -> dict[tuple[int, str], str | None]:
    view = progress.run(book.engine, run_id)
    assert view is not None
    return {(one.number, site.site): site.reason for one in view.rounds for site in one.sites}


def recorded(book: Book) -> list[Any]:
    with reading(book.engine) as session:
        rows = session.scalars(
            select(CoordinatorLedgerEntry).where(CoordinatorLedgerEntry.kind == UPDATE_LATE)
        )
        return [row.body for row in rows]


def test_a_late_update_stands_in_its_round_as_not_counted(book: Book, run_id: str) -> None:
    finish(book, run_id, 1, "north", "south")
    late = Late(Carriage(PLAN, 0, MODEL))
    late.add(late_answer("west", 1))

    late.write(book, run_id)

    assert places(book, run_id) == {(1, "north"): None, (1, "south"): None, (1, "west"): REASON}
    [body] = recorded(book)
    assert aggregation.fingerprint(DELTA) in body
    view = progress.run(book.engine, run_id)
    assert view is not None
    [west] = [site for site in view.rounds[0].sites if site.site == "west"]
    assert (west.accepted, west.samples, west.update_sha256) == (False, 12, aggregation.fingerprint(DELTA))


def test_it_waits_until_its_round_is_in_the_book(book: Book, run_id: str) -> None:
    late = Late(Carriage(PLAN, 0, MODEL))
    late.add(late_answer("west", 1))
    late.write(book, run_id)
    assert recorded(book) == []

    finish(book, run_id, 1, "north", "south")
    late.write(book, run_id)
    late.write(book, run_id)

    assert len(recorded(book)) == 1


def test_an_update_that_was_counted_is_not_late_when_it_comes_again(book: Book, run_id: str) -> None:
    finish(book, run_id, 1, "north", "south")
    late = Late(Carriage(PLAN, 0, MODEL))
    late.add(late_answer("north", 1))

    late.write(book, run_id)

    assert places(book, run_id) == {(1, "north"): None, (1, "south"): None}
    assert recorded(book) == []


@pytest.mark.parametrize(
    "changes",
    [{"plan": "f" * 64}, {"site": "north"}, {"number": 7}, {"kind": "nonsense"}],
    ids=["plan", "site", "round", "form"],
)
def test_what_is_no_update_of_this_run_is_not_recorded(
    book: Book, run_id: str, changes: dict[str, Any]
) -> None:
    finish(book, run_id, 1, "north", "south")
    late = Late(Carriage(PLAN, 0, MODEL))
    late.add(late_answer("west", 1, **changes))

    late.write(book, run_id)

    assert recorded(book) == []
    assert (1, "west") not in places(book, run_id)


def test_a_late_refusal_is_nothing(book: Book, run_id: str) -> None:
    finish(book, run_id, 1, "north", "south")
    late = Late(Carriage(PLAN, 0, MODEL))
    late.add(said("west", "paused"))

    late.write(book, run_id)

    assert recorded(book) == []
