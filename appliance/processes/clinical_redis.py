"""The embedded Redis of the clinical zone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from appliance.processes._redis import become

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Become the Redis server."""
    return become("clinical", argv)


if __name__ == "__main__":
    sys.exit(main())
