"""The DICOM Conformance Statement (PS3.2 annex N), from the tables of the code that it describes.

``statement.md`` has the words; what stands in double braces is put in from the code. What a node offers is
asked of a node: one is made in a temporary folder, and its services and routes say what they are. A service
that is added stands in the statement by itself, and a test says when the file in ``docs`` differs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from appliance.conformance import configuration, dimse, objects, web
from appliance.conformance.node import inspected

__all__ = ["statement"]

TEMPLATE: Final = Path(__file__).with_name("statement.md")
_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")


def statement() -> str:
    """Return the statement as Markdown; the same for the same code."""
    found = inspected()
    blocks = {
        **dimse.blocks(found),
        **web.blocks(found),
        **configuration.blocks(found),
        **objects.blocks(),
    }
    return _PLACE.sub(lambda place: blocks[place[1]], TEMPLATE.read_text(encoding="utf-8"))
