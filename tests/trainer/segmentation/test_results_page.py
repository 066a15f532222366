from __future__ import annotations

from pathlib import Path

from tests.benchmarks.bench_segmentation import MACHINES, NAMES, markdown, paired, with_section

PAGE = Path(__file__).resolve().parents[3] / "docs" / "results.md"


def figures() -> dict[str, object]:
    by_seed = [{name: 0.5 + 0.1 * (name == "ditto") + 0.01 * seed for name in NAMES} for seed in range(3)]
    return {
        "seeds": 3,
        "rounds": 1,
        "volumes": 129,
        "minutes": 1.0,
        "sets": {data: paired(by_seed) for data in MACHINES},
    }


def test_the_section_replaces_itself_and_leaves_the_others() -> None:
    page = "# Results\n\nhead\n\n## Hippocampus\n\nold\n\n## Attacks\n\nkept\n"
    once = with_section(page, markdown(figures()))
    assert "old" not in once
    assert once.startswith("# Results\n\nhead\n")
    assert once.rstrip().endswith("kept")
    assert with_section(once, markdown(figures())) == once
    assert with_section("# Results\n", markdown(figures())).count("## Hippocampus") == 1


def test_better_is_said_where_the_interval_leaves_zero_out() -> None:
    lines = markdown(figures()).splitlines()
    assert len([line for line in lines if line.startswith("| ditto ") and "| better |" in line]) == 2


def test_the_page_has_a_row_per_strategy_and_set() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Hippocampus\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    assert [row for row in rows if row in NAMES] == list(NAMES) * len(MACHINES)
