from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bench_claims
from tests.benchmarks.bench_strategies import NAMES, interval, markdown, summary
from tests.benchmarks.claims import CLAIMS
from tests.benchmarks.skewed_sites import SETS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "results.md"


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


def test_claims_are_tuned_on_other_seeds_than_they_are_measured_on() -> None:
    tuned = bench_claims.tuning_orders(2)
    scores = {order: 0.5 + 0.1 * (order[3] == 1) for order in tuned}

    chosen = bench_claims.choose(scores)
    orders = bench_claims.final_orders(chosen, 3)

    assert set(chosen) == {(claim.title, name) for claim in CLAIMS for name in claim.entrants}
    for (title, name), trial in chosen.items():
        [claim] = [one for one in CLAIMS if one.title == title]
        assert trial == (1 if len(claim.entrants[name]) > 1 else 0)
    assert not {order[2] for order in tuned} & {order[2] for order in orders}


def test_a_claims_rows_are_beside_the_one_to_beat() -> None:
    chosen = {(claim.title, name): 0 for claim in CLAIMS for name in claim.entrants}
    gain = {"scaffold": 0.1, "transfer": -0.1}
    found = {
        order: 0.7 + 0.01 * order[2] + gain.get(order[1], 0.0)
        for order in bench_claims.final_orders(chosen, 3)
    }

    table = bench_claims.summary(found, chosen)
    page = bench_claims.markdown({"seeds": 3, "tuning": 2, "minutes": 1.0, "workers": 2, "claims": table})

    assert table["Label skew, 40 steps a round"]["scaffold"]["beside"]["mean"] == pytest.approx(0.1)
    assert page.count("| better |") == 2
    assert page.count("| worse |") == 3
