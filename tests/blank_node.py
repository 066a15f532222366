"""A node to be copied: its keys are made and its databases migrated only once."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from appliance.node import create_node
from appliance.settings import load_settings


@lru_cache(maxsize=2)
def template(config: str) -> tempfile.TemporaryDirectory[str]:
    """Create a node of this configuration in a folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="cloister-node-")
    path = Path(folder.name) / "cloister.toml"
    path.write_text(config)
    create_node(load_settings(path))
    return folder
