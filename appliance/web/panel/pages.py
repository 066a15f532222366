"""All pages of the panel, in one tuple."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from appliance.web.panel import (
    consortium,
    deliveries,
    federation,
    fetch,
    fetches,
    home,
    jobs,
    ledger,
    model,
    models,
    peer,
    peers,
    quarantine,
    receipt,
    region,
    regions,
    result,
    results,
    retention,
    review,
    rules,
    run,
    shares,
    sources,
    studies,
    study,
    users,
    vault,
)

if TYPE_CHECKING:
    from appliance.web.panel.page import Page

PAGES: Final[tuple[Page[Any], ...]] = (
    home.PAGE,
    studies.PAGE,
    study.PAGE,
    results.PAGE,
    result.PAGE,
    deliveries.PAGE,
    federation.PAGE,
    run.PAGE,
    receipt.PAGE,
    models.PAGE,
    model.PAGE,
    jobs.PAGE,
    quarantine.PAGE,
    review.PAGE,
    regions.PAGE,
    region.PAGE,
    peers.PAGE,
    peer.PAGE,
    sources.PAGE,
    fetches.PAGE,
    fetch.PAGE,
    rules.PAGE,
    retention.PAGE,
    ledger.PAGE,
    consortium.PAGE,
    shares.PAGE,
    vault.PAGE,
    users.PAGE,
)
