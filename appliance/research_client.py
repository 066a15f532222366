"""Typed client of the research zone's socket, for the panel and the command line. Every call blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode

from appliance import meeting
from appliance.errors import ApplianceError
from appliance.federation import views
from appliance.federation.errors import SiteServiceError
from appliance.federation.unixclient import UnixClient

if TYPE_CHECKING:
    from appliance.settings import Settings

V = TypeVar("V")
TIMEOUT_S: Final = 15.0


class ResearchUnavailableError(ApplianceError):
    """The research zone does not answer now."""


class ResearchRefusedError(ApplianceError):
    """The research zone refused the request; the message says why."""


@dataclass(frozen=True)
class ResearchClient:
    """Ask the research zone.

    Every method raises ResearchUnavailableError when nobody answers, and ResearchRefusedError when the
    request is refused (an unknown row, a decision that cannot be taken).
    """

    client: UnixClient

    def summary(self) -> views.Summary:
        """Return the zone at a glance."""
        return views.decode(views.Summary, self._ask("GET", "/v1/summary"))

    def protocols(self) -> list[views.ProtocolView]:
        """Return all protocols, those that wait first."""
        return self._list(views.ProtocolView, "/v1/protocols")

    def protocol(self, protocol_id: str) -> views.ProtocolView:
        """Return one protocol by row id or the beginning (8 digits or more) of its plan's hash."""
        return views.decode(
            views.ProtocolView, self._ask("GET", f"/v1/protocols/{quote(protocol_id, safe='')}")
        )

    def decide(
        self, protocol_id: str, decision: str, actor: str, reason: str | None = None, shown: str = ""
    ) -> views.ProtocolView:
        """Record a person's decision; return the protocol after it.

        ``approve``, ``refuse``, ``suspend``, ``pause``, ``resume`` or ``leave``. An approval
        names in ``shown`` the view's ``shown_sha256``: nobody approves what was not shown.
        """
        body = {"decision": decision, "actor": actor, "reason": reason, "shown_sha256": shown}
        path = f"/v1/protocols/{quote(protocol_id, safe='')}/decision"
        return views.decode(views.ProtocolView, self._ask("POST", path, body))

    def preflight(self, protocol_id: str, actor: str) -> str:
        """Ask for a preflight of a protocol; return the job's row id. The protocol's view shows its state."""
        path = f"/v1/protocols/{quote(protocol_id, safe='')}/preflight"
        return str(self._ask("POST", path, {"actor": actor})["job_id"])

    def runs(self) -> list[views.RunView]:
        """Return the runs that this site knows, newest first, with rounds and their metrics for curves."""
        return self._list(views.RunView, "/v1/runs")

    def receipts(self, limit: int = 100) -> list[views.ReceiptView]:
        """Return the newest receipts."""
        return self._list(views.ReceiptView, "/v1/receipts", limit=limit)

    def receipt(self, name: str) -> views.ReceiptView:
        """Return one receipt by row id, its round's, or the beginning (8 digits or more) of its hash."""
        return views.decode(views.ReceiptView, self._ask("GET", f"/v1/receipts/{quote(name, safe='')}"))

    def budget(self) -> views.BudgetView:
        """Return what privacy may cost, and has cost."""
        return views.decode(views.BudgetView, self._ask("GET", "/v1/budget"))

    def set_budget(self, epsilon: float, delta: float, actor: str) -> views.BudgetView:
        """Set the privacy budget; return it with what is spent."""
        body = {"epsilon": epsilon, "delta": delta, "actor": actor}
        return views.decode(views.BudgetView, self._ask("POST", "/v1/budget", body))

    def datasets(self, limit: int = 100) -> list[views.DatasetView]:
        """Return the newest dataset versions."""
        return self._list(views.DatasetView, "/v1/datasets", limit=limit)

    def candidates(self, limit: int = 100) -> list[views.CandidateView]:
        """Return the newest model packages made here."""
        return self._list(views.CandidateView, "/v1/candidates", limit=limit)

    def jobs(self, state: str | None = None, limit: int = 100) -> list[views.JobView]:
        """Return rounds and other jobs as pieces of work, newest first."""
        return self._list(views.JobView, "/v1/jobs", state=state, limit=limit)

    def retry(self, table: str, row_id: str, actor: str) -> bool:
        """Queue a dead or failed round or job again; return whether it was one."""
        answer = self._ask("POST", f"/v1/jobs/{table}/{quote(row_id, safe='')}/retry", {"actor": actor})
        return bool(answer["retried"])

    def ledger(self, before: int | None = None, limit: int = 100) -> list[views.LedgerRow]:
        """Return ledger entries, newest first, below a sequence number."""
        return self._list(views.LedgerRow, "/v1/ledger", before=before, limit=limit)

    def consortium(self) -> views.ConsortiumView:
        """Return the consortium's history as this site keeps it."""
        return views.decode(views.ConsortiumView, self._ask("GET", "/v1/consortium"))

    def resolve_finding(self, finding_id: str, actor: str) -> None:
        """Note that a person has looked into a finding of the consortium's ledger."""
        self._ask("POST", f"/v1/consortium/findings/{quote(finding_id, safe='')}", {"actor": actor})

    def shares(self) -> list[views.ShareView]:
        """Return de-identified studies that this site gave to others and received, newest first."""
        return self._list(views.ShareView, "/v1/shares")

    def share_step(self, share_id: str, step: str, actor: str) -> views.ShareView:
        """Take a step of sharing, ``withdraw`` or ``erase``; return the share after it."""
        path = f"/v1/shares/{quote(share_id, safe='')}/{step}"
        return views.decode(views.ShareView, self._ask("POST", path, {"actor": actor}))

    def announce_shares(self) -> list[views.ShareView]:
        """Say what the coordinator does not know yet, learn what others said; return all shares."""
        return [views.decode(views.ShareView, one) for one in self._ask("POST", "/v1/shares", {})]

    def verify_ledger(self) -> views.LedgerReport:
        """Check the whole ledger."""
        return views.decode(views.LedgerReport, self._ask("GET", "/v1/ledger/report"))

    def _list(self, kind: type[V], path: str, **query: Any) -> list[V]:
        text = urlencode({name: value for name, value in query.items() if value is not None})
        return [views.decode(kind, item) for item in self._ask("GET", f"{path}?{text}" if text else path)]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return self.client.json(method, path, body)
        except SiteServiceError as error:
            if error.retryable:
                raise ResearchUnavailableError(str(error)) from error
            raise ResearchRefusedError(str(error)) from error


def connect(settings: Settings) -> ResearchClient:
    """Return a client of this node's research zone; nothing connects before the first call."""
    return ResearchClient(UnixClient(meeting.research_socket(settings), TIMEOUT_S))
