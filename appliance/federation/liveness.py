"""Signs of life of the sites' job processes: a site that is connected may have none that works on this job.

The engine counts a site as there while its standing process is. One that died and came back within the
engine's time-out is connected as before, but no process of it works on the job any longer, and none will.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SILENT_AFTER_S: Final = 40.0  # a job process speaks every ten seconds, whatever it works on


@dataclass
class Signs:
    """When each site's job process was last heard, on a monotonic clock."""

    _heard: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def heard(self, site: str, at: float) -> None:
        """Take note of a sign."""
        with self._lock:
            self._heard[site] = at

    def silent(
        self, sites: Iterable[str], at: float, since: float, after_s: float = SILENT_AFTER_S
    ) -> frozenset[str]:
        """Return the sites that gave no sign for ``after_s``; nobody is waited for less, ``since`` then."""
        with self._lock:
            heard = dict(self._heard)
        return frozenset(site for site in sites if at - max(heard.get(site, since), since) >= after_s)
