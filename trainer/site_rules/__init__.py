"""What a site does in a round, by strategy, and what of it stays there for the next round.

The state is a site's own: it never leaves, and it survives restarts where the caller keeps it.
"""

from __future__ import annotations

from typing import Final

from trainer import peers
from trainer.site_rules.base import Round, SiteRule, Whole
from trainer.site_rules.medical import Expert, Frozen, InStyle, Weighed
from trainer.site_rules.momentum import Momentum
from trainer.site_rules.personal import OwnAppearance, OwnNormalisation, Personal
from trainer.site_rules.scaffold import Controlled

_WHOLE: Final = Whole()
_RULES: Final[dict[str, SiteRule]] = {
    "fedbn": OwnNormalisation(),
    "feddis": OwnAppearance(),
    "scaffold": Controlled(),
    "ditto": Personal(),
    "auto-fedavg": Weighed(),
    "transfer": Frozen(),
    "domain-adaptation": Expert(),
    "variation-aware": InStyle(),
    "dfedavgm": Momentum(),
}


def site_rule(strategy: str) -> SiteRule:
    """Return what a site does under a strategy; raises StrategyError for an unknown one."""
    peers.terms(strategy)
    return _RULES.get(strategy, _WHOLE)


__all__ = ["Round", "SiteRule", "Whole", "site_rule"]
