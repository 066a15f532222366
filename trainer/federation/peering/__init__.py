"""Rounds of a real run in which each site keeps a model of its own: ``dfedavgm`` and ``braintorrent``.

Nobody holds a global model. What stands for a round's model is its :class:`record.Record`: who has said what
of its own model, by hash. The coordinator hands :mod:`letters` over; each site brings models together itself.
"""

from __future__ import annotations

from typing import Final

MAIL: Final = "mail:"
"""How the names of arrays begin that come to a site beside a record."""
