from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.benchmarks import bench_claims, convex_sites, trials, unseen_claims
from tests.benchmarks.bench_strategies import NAMES, interval, markdown, summary
from tests.benchmarks.claim_parts import PARTS
from tests.benchmarks.skewed_sites import SETS
from tests.trainer.samples import drawn_dataset, small_task
from trainer.local_round import use_threads
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.datasets import Dataset

use_threads(1)
TASK = small_task(network=NetworkSpec("linear"))
SITES = {f"s{number}": drawn_dataset(number, TASK) for number in range(2)}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "results.md"
CLAIMS_PAGE = PAGE.parent / "federation" / "claims.md"


def test_the_page_of_results_has_a_row_per_strategy_and_data() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("\n## Hippocampus\n")[0]  # which has few of them
    rows = [line.split("|")[1].strip() for line in page.splitlines() if "|" in line]
    assert [row for row in rows if row in NAMES] == list(NAMES) * len(SETS)


def test_an_interval_is_that_of_paired_differences() -> None:
    found = interval([0.01, 0.02, 0.03])
    assert found["mean"] == pytest.approx(0.02)
    assert found["high"] - found["mean"] == pytest.approx(4.303 * 0.01 / 3**0.5)
    assert found["low"] == pytest.approx(2 * found["mean"] - found["high"])


def test_better_and_worse_are_said_where_the_interval_leaves_zero_out() -> None:
    shift = {"fedprox": 0.1, "krum": -0.1}
    found = {
        (data, seed, 1): {
            name: {"auc": 0.5 + shift.get(name, 0.0) + 0.01 * seed, "worst": 0.4, "kib": 1.0}
            for name in NAMES
        }
        for data in SETS
        for seed in range(3)
    }
    figures = {"seeds": 3, "rounds": 1, "minutes": 1.0, "workers": 2, "sets": summary(found)}
    lines = markdown(figures).splitlines()
    for name, verdict in (("fedprox", "better"), ("krum", "worse")):
        assert len([line for line in lines if line.startswith(f"| {name} ") and verdict in line]) == 3


@pytest.mark.parametrize("name", PARTS)
def test_claims_are_tuned_on_other_seeds_than_they_are_measured_on(name: str) -> None:
    tuned = bench_claims.tuning_orders(name)
    by_claim = {claim.title: claim for claim in PARTS[name].claims}
    scores = {order: 0.5 + 0.1 * (order[4] == 1) * (-1 if by_claim[order[1]].less else 1) for order in tuned}

    chosen = bench_claims.choose(scores)
    orders = bench_claims.final_orders(name, chosen)

    assert set(chosen) == {
        (title, entrant)
        for title, claim in by_claim.items()
        for entrant, grid in claim.entrants.items()
        if len(grid) > 1
    }
    assert set(chosen.values()) <= {1}
    measured = [(order[1], order[2], order[3]) for order in orders]
    assert len(set(measured)) == len(measured)
    assert len(measured) == sum(len(claim.entrants) for claim in by_claim.values()) * len(PARTS[name].seeds)
    assert not {order[3] for order in tuned} & {order[3] for order in orders}


def test_a_claims_rows_are_beside_the_one_to_beat() -> None:
    gain = {"scaffold": 0.1, "transfer": -0.1}
    page = bench_claims.page("", {"parts": {"small": figures("small", gain)}})

    assert figures("small", gain)["claims"]["Label skew, 40 steps a round"]["scaffold"]["beside"][
        "mean"
    ] == pytest.approx(0.1)
    assert page.count("| better |") == 2
    assert page.count("| worse |") == 3


def test_less_of_a_loss_is_better() -> None:
    page = bench_claims.page("", {"parts": {"convex": figures("convex", {"fedprox": -0.1, "fedadam": -0.1})}})
    rows = [line for line in page.splitlines() if line.startswith(("| fedprox", "| fedadam"))]
    assert [line.rsplit(" | ", 1)[1] for line in rows] == ["better |", "better |", "worse |"]


def test_a_part_is_written_anew_and_the_others_stay_as_they_stand() -> None:
    first = {"parts": {"small": figures("small", {}), "convex": figures("convex", {})}}
    before = bench_claims.page("", first)
    after = bench_claims.page(before, {"parts": {"convex": figures("convex", {"fedprox": -0.1})}})
    again = bench_claims.page(after, {"parts": {"convex": first["parts"]["convex"]}})

    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed
    assert all(line.startswith("| fedprox") for line in changed)
    assert again == before


def test_the_page_of_claims_has_a_section_per_part_and_a_row_per_entrant() -> None:
    page = CLAIMS_PAGE.read_text(encoding="utf-8")
    for part in PARTS.values():
        section = page.partition(f"\n## {part.title}\n")[2].partition("\n## ")[0]
        rows = [line.split(" | ", 1)[0] for line in section.splitlines() if line.startswith("| ")]
        expected = [f"| {entrant}" for claim in part.claims for entrant in claim.entrants]
        assert [row for row in rows if row.strip("| -")] == expected


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some of"):
        bench_claims.run(parts="convex,none")


def test_rounds_are_counted_until_the_target_and_one_more_where_it_is_never_reached() -> None:
    easy, hard = (
        trials.rounds_to(target, lambda _: SITES, TASK, 3)(1, trials.Trial(rate=0.01))
        for target in (0.6, 0.0)
    )
    assert easy in {1.0, 2.0, 3.0}
    assert hard == 4


def test_a_trial_trains_with_its_own_steps_and_rate() -> None:
    local = trials.Trial(rate=0.5, steps=3).task(TASK).local
    assert (local.learning_rate, local.local_steps) == (0.5, 3)
    assert trials.Trial().task(TASK) == TASK


def test_absences_leave_as_many_as_take_part_and_are_the_same_for_whoever_is_compared() -> None:
    names = [f"s{i}" for i in range(10)]
    away = trials.absences(names, 2, 30, seed=4)
    assert {len(gone) for gone in away.values()} == {8}
    assert set(names) == set().union(*away.values())
    assert len(set(away.values())) > 10
    assert away == trials.absences(names[::-1], 2, 30, seed=4)
    assert trials.absences(names, 0, 30, seed=4) == {}


def test_sites_of_one_label_have_it_alone_and_all_are_measured_on_the_same_cases() -> None:
    sites = convex_sites.sorted_by_label(1)
    assert [set(one.train.y.tolist()) for one in sites.values()] == [{0}] * 5 + [{1}] * 5
    pictures = {x.tobytes() for one in sites.values() for x in one.train.x}
    held_out = next(iter(sites.values())).validation
    again = sum(x.tobytes() in pictures for x in held_out.x)
    assert again <= 4  # of 400: the public set has 18 of its 4,708 pictures twice
    assert all(one.validation is held_out for one in sites.values())


@pytest.mark.parametrize("make", [convex_sites.synthetic, convex_sites.sparse, unseen_claims.tagged])
def test_drawn_sites_are_those_of_their_seed(make: Callable[[int], dict[str, Dataset]]) -> None:
    one, same, other = make(1), make(1), make(2)
    assert all(np.array_equal(one[name].train.x, same[name].train.x) for name in one)
    assert any(one[name].train.x.tobytes() != other[name].train.x.tobytes() for name in one)


def test_a_tag_says_what_the_label_says_at_most_sites_alone() -> None:
    for site, one in unseen_claims.tagged(1).items():
        corner = one.validation.x[:, 0, :2, :2].mean(axis=(1, 2))
        agreeing = np.mean((corner > np.median(corner)) == one.validation.y)
        assert (agreeing > 0.75) == (unseen_claims.TAGS[site] > 0.5), site


def figures(name: str, gain: dict[str, float]) -> dict[str, Any]:
    """Return figures of a part in which some entrants differ from the others."""
    chosen = {(claim.title, entrant): 0 for claim in PARTS[name].claims for entrant in claim.entrants}
    found = {
        order: 0.7 + 0.0001 * order[3] + gain.get(order[2], 0.0)
        for order in bench_claims.final_orders(name, chosen)
    }
    return {"minutes": 1.0, "workers": 2, "claims": bench_claims.summary(name, found, chosen)}
