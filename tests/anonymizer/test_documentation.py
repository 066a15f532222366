"""docs/deidentification.md says what the tables say."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "deidentification.md").read_text()


def _table(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "anonymizer" / "tables" / f"{name}.json").read_text())
    return content


def test_the_number_of_rows_of_each_action_is_the_documented_one() -> None:
    documented = {
        code: int(rows) for code, rows in re.findall(r"^\| ([XZDU/*]+) \| (\d+) \|", DOCS, re.MULTILINE)
    }
    assert documented == Counter(row[4] for row in _table("annex_e")["rows"])
    assert sum(documented.values()) == 656


def test_the_stricter_attributes_are_the_documented_ones() -> None:
    documented = re.findall(r"^\| \((\w{4}),(\w{4})\) \| (\w+) \| ([^|]+) \|$", DOCS, re.MULTILINE)
    assert [[group + element, name, why] for group, element, name, why in documented] == _table("stricter")[
        "rows"
    ]


def test_the_released_classes_are_the_documented_ones() -> None:
    documented = re.findall(r"^\| (1\.2\.840\.[\d.]+) \| ([^|]+) \|$", DOCS, re.MULTILINE)
    assert [list(row) for row in documented] == _table("sop_classes")["released"]
