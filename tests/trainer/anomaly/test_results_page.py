from __future__ import annotations

from pathlib import Path

from tests.benchmarks.bench_anomaly import NAMES, markdown, paired

PAGE = Path(__file__).resolve().parents[3] / "docs" / "results.md"
WAYS = (*NAMES, "local", "mean picture")


def figures() -> dict[str, object]:
    shift = {"feddis": -0.1, "local": 0.1}
    by_seed = [
        {
            name: {
                "dice": 0.5 + shift.get(name, 0) + 0.01 * seed,
                "precision": 0.4 + (0.1 if seed else -0.1) * (name == "local"),
            }
            for name in WAYS
        }
        for seed in range(4)
    ]
    return {"seeds": 4, "rounds": 1, "volumes": 129, "minutes": 1.0, "workers": 2, "ways": paired(by_seed)}


def test_better_and_worse_are_said_where_the_interval_leaves_zero_out() -> None:
    rows = {line.split("|")[1].strip(): line for line in markdown(figures()).splitlines() if "| " in line}
    assert "| 0.415 | -0.100 [-0.100, -0.100] | worse | 0.400 |" in rows["feddis"]
    assert "| 0.615 | +0.100 [+0.100, +0.100] | better | 0.450 |" in rows["local"]
    assert "[-0.109, +0.209] | no difference shown |" in rows["local"]


def test_the_page_has_a_row_per_way() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Anomalies\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    assert [row for row in rows if row in WAYS] == list(WAYS)
