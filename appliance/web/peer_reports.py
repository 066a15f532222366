"""The last connection test of each peer, until the process ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.peer_tests import PeerReport


@dataclass
class LastReports:
    """Reports by peer."""

    _reports: dict[str, PeerReport] = field(default_factory=dict)

    def keep(self, report: PeerReport) -> None:
        """Remember a report."""
        self._reports[report.peer_id] = report

    def of(self, peer_id: str) -> PeerReport | None:
        """Return the last one."""
        return self._reports.get(peer_id)

    def verdict(self, peer_id: str) -> bool | None:
        """Return whether the last one went well; None without one."""
        report = self._reports.get(peer_id)
        return None if report is None else report.ok
