from __future__ import annotations

from typing import Any

from appliance.federation.collection import Collection

SITES = frozenset({"north", "south", "west"})


def collection(**changes: Any) -> Collection:
    values: dict[str, Any] = {
        "targets": SITES,
        "awaited": SITES,
        "min_answers": 2,
        "timeout_s": 100.0,
        "straggler_wait_s": 10.0,
        "started": 0.0,
        **changes,
    }
    return Collection(**values)


def test_it_ends_at_once_when_everybody_has_answered() -> None:
    one = collection()
    for site in SITES:
        assert not one.over(1.0)
        one.answered(site, 1.0, usable=True)

    assert one.over(1.0)
    assert one.enough


def test_a_dead_site_holds_the_others_up_for_the_straggler_wait_alone() -> None:
    one = collection()
    one.answered("north", 5.0, usable=True)
    one.answered("south", 6.0, usable=True)

    assert not one.over(15.9)
    assert one.over(16.0)
    assert one.silent == {"west"}


def test_a_site_that_fell_silent_last_time_holds_nobody_up() -> None:
    one = collection(awaited=SITES - {"west"})
    one.answered("north", 5.0, usable=True)
    one.answered("south", 6.0, usable=True)

    assert one.over(6.0)


def test_a_site_that_the_engine_knows_to_be_gone_is_not_waited_for() -> None:
    one = collection()
    one.answered("north", 5.0, usable=True)
    one.answered("south", 6.0, usable=True)
    one.lost(["west"])

    assert one.over(6.0)


def test_without_enough_answers_it_waits_until_the_time_out() -> None:
    one = collection()
    one.answered("north", 5.0, usable=True)

    assert not one.over(99.0)
    assert one.over(100.0)
    assert not one.enough


def test_it_ends_early_when_enough_answers_have_become_impossible() -> None:
    one = collection()
    one.answered("north", 5.0, usable=False)
    one.answered("south", 5.0, usable=False)

    assert one.over(5.0)
    assert not one.enough


def test_a_refusal_counts_as_heard_but_not_as_usable() -> None:
    one = collection()
    one.answered("north", 1.0, usable=True)
    one.answered("south", 1.0, usable=True)
    one.answered("west", 1.0, usable=False)

    assert one.over(1.0)
    assert one.usable == {"north", "south"}
    assert one.silent == frozenset()


def test_a_site_that_comes_on_is_waited_for_beyond_the_time_out() -> None:
    one = collection(limit_s=1000.0)
    one.answered("north", 5.0, usable=True)
    one.stalled = frozenset({"west"})

    assert not one.over(150.0)
    one.answered("south", 150.0, usable=True)
    assert one.over(150.0)
    assert one.enough


def test_whatever_progress_there_is_a_round_ends() -> None:
    one = collection(limit_s=1000.0)

    assert not one.over(999.0)
    assert one.over(1000.0)


def test_stalled_sites_that_leave_too_few_end_the_round() -> None:
    one = collection(limit_s=1000.0)
    one.answered("north", 5.0, usable=True)
    one.stalled = frozenset({"south", "west"})

    assert one.over(100.0)


def test_a_stalled_site_that_answers_after_all_counts() -> None:
    one = collection(limit_s=1000.0)
    one.stalled = frozenset({"south"})
    one.answered("north", 5.0, usable=True)
    one.answered("south", 6.0, usable=True)

    assert not one.over(15.0)
    assert one.over(16.0)
    assert one.enough
