"""The research zone's services, inside its agent: a socket for panel and commands, one for the federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from appliance import crossing, ledger, node, preflight, work
from appliance.consortium import shown
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.replica import Replica
from appliance.consortium.selection import still_here
from appliance.consortium.sharing import Sharing
from appliance.consortium.speaking import Speaker
from appliance.db.engine import reading, writing
from appliance.db.research import ProtocolState, ResearchJob, Round
from appliance.federation import budget, comparing, protocols, queries, siteapi, views
from appliance.federation.unixhttp import OWNER_ONLY, Handler, Request, RequestError, Route, UnixServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone

JOB_RETRIED: Final = "job.retried"
_DECISIONS: Final = {
    "approve": ProtocolState.APPROVED,
    "refuse": ProtocolState.REFUSED,
    "suspend": ProtocolState.SUSPENDED,
    "pause": ProtocolState.PAUSED,
    "resume": ProtocolState.APPROVED,
    "leave": ProtocolState.LEFT,
}


@dataclass(frozen=True)
class Services:
    """The running servers."""

    servers: tuple[UnixServer, ...]

    def stop(self) -> None:
        """Stop serving."""
        for server in self.servers:
            server.stop()


def start_api(zone: ResearchZone) -> Services:
    """Serve both sockets in threads of this process; stop with ``stop()``."""
    settings = zone.settings
    mode = crossing.SOCKET_MODE if node.zones_apart(settings) else OWNER_ONLY
    server = UnixServer(node.research_socket(settings), routes(zone), mode)
    server.start()
    return Services((server, siteapi.serve(zone)))


def routes(zone: ResearchZone) -> list[Route]:
    """Return the routes of the panel's and the commands' socket."""
    return [*_questions(zone), *_acts(zone)]


def _questions(zone: ResearchZone) -> list[Route]:
    def ask(question: Callable[[Session, Request], Any]) -> Handler:
        def answer(request: Request) -> object:
            with reading(zone.engine) as session:
                return views.encode(question(session, request))

        return answer

    def verify(request: Request) -> object:
        del request
        key = zone.keys.signing.public_key()
        report = ledger.verify(zone.engine, key, node.head_path(zone.settings, "research"))
        return views.encode(report)

    return [
        Route("GET", "/v1/summary", ask(lambda s, _: queries.summary(s, zone))),
        Route("GET", "/v1/protocols", ask(lambda s, _: queries.list_protocols(s, zone))),
        Route("GET", "/v1/protocols/{id}", ask(lambda s, r: queries.protocol(s, zone, r.parameters["id"]))),
        Route("GET", "/v1/runs", ask(lambda s, _: queries.list_runs(s))),
        Route("GET", "/v1/receipts", ask(lambda s, r: queries.list_receipts(s, zone, _limit(r)))),
        Route("GET", "/v1/receipts/{id}", ask(lambda s, r: queries.one_receipt(s, zone, r.parameters["id"]))),
        Route("GET", "/v1/budget", ask(lambda s, _: queries.privacy_budget(s))),
        Route("GET", "/v1/datasets", ask(lambda s, r: queries.list_datasets(s, _limit(r)))),
        Route("GET", "/v1/candidates", ask(lambda s, r: queries.list_candidates(s, _limit(r)))),
        Route("GET", "/v1/jobs", ask(lambda s, r: queries.list_jobs(s, r.query.get("state"), _limit(r)))),
        Route("GET", "/v1/ledger", ask(lambda s, r: queries.ledger_page(s, _before(r), _limit(r)))),
        Route("GET", "/v1/ledger/report", verify),
        Route("GET", "/v1/consortium", ask(lambda s, _: shown.history(s))),
        Route("GET", "/v1/shares", ask(lambda s, _: shown.shares(s, zone))),
    ]


def _decide(zone: ResearchZone, request: Request) -> object:
    """Record a person's decision about a protocol."""
    body = request.json()
    decision, reason = body.get("decision"), body.get("reason")
    actor = _actor(body)
    if decision not in _DECISIONS:
        raise RequestError(400, f"expected a decision: {', '.join(_DECISIONS)}")
    if reason is not None and not isinstance(reason, str):
        raise RequestError(400, "expected a text as reason")
    shown = body.get("shown_sha256") or ""
    if not isinstance(shown, str) or (decision == "approve" and not shown):
        raise RequestError(400, "expected shown_sha256 with an approval: the hash of what was shown")
    with writing(zone.engine) as session:
        act = (session, zone.ledger, request.parameters["id"])
        if decision == "approve":
            row = comparing.approve(*act, actor, reason, shown)
        elif decision == "resume":
            row = protocols.resume(*act, actor, reason)
        else:
            row = protocols.decide(*act, _DECISIONS[decision], actor, reason)
        session.flush()
        return views.encode(queries.protocol(session, zone, row.id))


def _actor(body: Mapping[str, Any]) -> str:
    actor = body.get("actor")
    if not isinstance(actor, str) or not actor:
        raise RequestError(400, "expected an actor")
    return actor


def _acts(zone: ResearchZone) -> list[Route]:
    def retry(request: Request) -> object:
        actor = _actor(request.json())
        return {"retried": _retry(zone, request.parameters["table"], request.parameters["id"], actor)}

    def look(request: Request) -> object:
        return {"job_id": preflight.ask(zone, request.parameters["id"], _actor(request.json()))}

    def resolve(request: Request) -> object:
        try:
            Replica(zone).resolve(request.parameters["id"], _actor(request.json()), adopt=False)
        except ConsortiumError as error:
            raise RequestError(404, str(error)) from error
        return {}

    return [
        Route("POST", "/v1/consortium/findings/{id}", resolve),
        Route("POST", "/v1/protocols/{id}/decision", lambda request: _decide(zone, request)),
        Route("POST", "/v1/protocols/{id}/preflight", look),
        Route("POST", "/v1/jobs/{table}/{id}/retry", retry),
        Route("POST", "/v1/budget", lambda request: _set_budget(zone, request)),
        *_sharing(zone),
    ]


def _sharing(zone: ResearchZone) -> list[Route]:
    def step(request: Request) -> object:
        sharing, taken = _opened(zone), request.parameters["step"]
        if taken not in {"withdraw", "erase"}:
            raise RequestError(404, "expected withdraw or erase")
        take = sharing.withdraw if taken == "withdraw" else sharing.erase
        row = take(request.parameters["id"], _actor(request.json()))
        with reading(zone.engine) as session:
            return views.encode(shown.share(zone, row, still_here(session)))

    def announce(request: Request) -> object:
        del request
        _opened(zone).announce()
        with reading(zone.engine) as session:
            return views.encode(shown.shares(session, zone))

    return [
        Route("POST", "/v1/shares", announce),
        Route("POST", "/v1/shares/{id}/{step}", step),
    ]


def _opened(zone: ResearchZone) -> Sharing:
    """Return who takes steps of sharing for this site; refuses where it is no member."""
    workspace = zone.settings.federation.workspace
    if workspace is None:
        raise RequestError(409, "this site has not joined a federation")
    return Sharing(Speaker(zone, workspace))


def _set_budget(zone: ResearchZone, request: Request) -> object:
    """Set the privacy budget."""
    body = request.json()
    epsilon, delta, actor = body.get("epsilon"), body.get("delta"), body.get("actor")
    if not isinstance(actor, str) or not actor or not _is_number(epsilon) or not _is_number(delta):
        raise RequestError(400, "expected an actor, and epsilon and delta as numbers")
    with writing(zone.engine) as session:
        budget.set_budget(session, zone.ledger, epsilon, delta, actor)
        return views.encode(queries.privacy_budget(session))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _retry(zone: ResearchZone, table: str, row_id: str, actor: str) -> bool:
    """Queue a dead or failed piece of work again, and wake a worker."""
    if table not in {"round", "job"}:
        raise RequestError(404, "expected round or job")
    with writing(zone.engine) as session:
        retried = work.retry(session, Round if table == "round" else ResearchJob, row_id)
        if retried:
            zone.ledger.append(session, kind=JOB_RETRIED, subject_id=row_id, actor=actor)
    if retried and table == "round":
        zone.wake(row_id)
    return retried


def _limit(request: Request) -> int:
    return _number(request, "limit") or queries.PAGE


def _before(request: Request) -> int | None:
    return _number(request, "before")


def _number(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise RequestError(400, f"{name}: expected a whole number")
    return int(text)
