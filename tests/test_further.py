from __future__ import annotations

import pytest

from tests.further import FURTHER, cases


def test_what_is_not_among_the_first_cases_is_marked() -> None:
    found = cases(["a", "b", "c"], ["b"], {"b": "the second"})
    assert [one.values for one in found] == [("a",), ("b",), ("c",)]
    assert [one.marks for one in found] == [(FURTHER,), (), (FURTHER,)]
    assert [one.id for one in found] == [None, "the second", None]


def test_a_first_case_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such cases"):
        cases(["a"], ["a", "d"])
