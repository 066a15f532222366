"""docs/configuration.md says what the settings tree is."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from appliance.settings import Settings

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()


def _documented() -> dict[str, set[str]]:
    """Section -> field names, as the table gives them."""
    found: dict[str, set[str]] = {"": set()}
    sections = [""]
    for line in DOCS.splitlines():
        cell = line.split("|")[1] if line.startswith("|") else ""
        if "**" in cell:
            sections = re.findall(r"\[(\w+)\]", cell)
        names = set(re.findall(r"`(\w+)`", cell)) if "**" not in cell else set()
        for section in sections:
            found.setdefault(section, set()).update(names)
    return found


def _defined() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"": set()}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = set(kind.model_fields)
        else:
            found[""].add(name)
    return found


def test_every_setting_is_documented_and_no_other() -> None:
    assert _documented() == _defined()
