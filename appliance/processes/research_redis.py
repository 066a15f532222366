"""The embedded Redis of the research zone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from appliance.processes._redis import become

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Become the Redis server."""
    return become("research", argv)


if __name__ == "__main__":
    sys.exit(main())
