"""The tabs over the pages of records: both zones' ledgers, the consortium's, and what was shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.web.panel.markup import el

if TYPE_CHECKING:
    from markupsafe import Markup

_TABS: Final = (
    ("/ledger", "Clinical zone"),
    ("/ledger?zone=research", "Research zone"),
    ("/consortium", "Consortium"),
    ("/shares", "Shared studies"),
)


def tabs(current: str) -> Markup:
    """Draw the tabs; ``current`` is the address of the page that is shown."""
    links = [
        el("a", text, href=href, aria_current="page" if href == current else None) for href, text in _TABS
    ]
    return el("nav", *links, class_="tabs", aria_label="Records")
