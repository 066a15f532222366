"""When has a round heard enough? Decided here, apart from the engine, so that it can be tested by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LEASES: Final = 10  # a site that always comes on holds a round up for so many times its time-out


@dataclass
class Collection:
    """The answers of one broadcast.

    Parameters
    ----------
    targets : frozenset of str
        Sites that were asked.
    awaited : frozenset of str
        Those that are waited for beyond ``min_answers``: sites that answered last time. A site that fell
        silent is asked again in each round but holds nobody up.
    min_answers : int
        Fewest usable answers.
    timeout_s, straggler_wait_s : float
        Longest time without progress of a site, and longest time after ``min_answers`` were reached.
    limit_s : float
        Longest time in all, whatever progress there is; as ``timeout_s`` where nobody tells of progress.
    stalled : frozenset of str
        Targets that made no progress for ``timeout_s``. They are not waited for; one that answers counts.
    """

    targets: frozenset[str]
    awaited: frozenset[str]
    min_answers: int
    timeout_s: float
    straggler_wait_s: float
    started: float
    limit_s: float = 0.0
    stalled: frozenset[str] = frozenset()
    usable: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    enough_at: float | None = None

    def answered(self, site: str, at: float, *, usable: bool) -> None:
        """Take note of an answer."""
        (self.usable if usable else self.refused).add(site)
        if self.enough_at is None and len(self.usable) >= self.min_answers:
            self.enough_at = at

    def lost(self, sites: Iterable[str]) -> None:
        """Take note of sites that the engine knows to be gone."""
        self.gone |= set(sites) & self.targets

    def over(self, at: float) -> bool:
        """Whether there is nothing more to wait for."""
        heard = self.usable | self.refused | self.gone | self.stalled
        if self.targets <= heard or at - self.started >= max(self.timeout_s, self.limit_s):
            return True
        if self.enough_at is None:
            possible = len(self.targets - (heard - self.usable))
            return possible < self.min_answers
        return self.awaited <= heard or at - self.enough_at >= self.straggler_wait_s

    @property
    def enough(self) -> bool:
        """Whether the broadcast counts."""
        return len(self.usable) >= self.min_answers

    @property
    def silent(self) -> frozenset[str]:
        """Return the sites that were asked and said nothing."""
        return frozenset(self.targets - self.usable - self.refused)
