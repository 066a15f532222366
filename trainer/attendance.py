"""Who answers in which round of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import StrategyError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def split(
    away: Mapping[int, Collection[str]], number: int, sites: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return who does not answer in a round, and who does; raises StrategyError where nobody does."""
    gone = tuple(site for site in sites if site in away.get(number, ()))
    there = tuple(site for site in sites if site not in gone)
    if not there:
        raise StrategyError(f"round {number}: every site is away; expected at least one")
    return gone, there
