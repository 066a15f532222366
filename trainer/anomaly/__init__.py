"""Tasks that learn what healthy pictures look like, and find what does not."""

from __future__ import annotations

from typing import Final

APPEARANCE: Final = "appearance."
"""How the names of the arrays begin that know a site's appearance, and no shape."""
