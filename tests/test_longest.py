from __future__ import annotations

from tests.longest import LONGEST, TESTS, rank


def test_every_listed_file_is_there_once_and_begins_before_all_others() -> None:
    assert len(set(LONGEST)) == len(LONGEST)
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
    ranks = [rank(TESTS / name) for name in LONGEST]
    assert ranks == sorted(ranks)
    assert max(ranks) < rank(TESTS / "test_longest.py")
