"""The site's service over its own Unix socket, for the engine's processes alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from appliance import node
from appliance.consortium.errors import BlockFormError
from appliance.consortium.offers import read_offer
from appliance.consortium.replica import Held, Replica
from appliance.federation import refusals, sitekeys
from appliance.federation.envelope import EnvelopeError
from appliance.federation.site import Asked, Decision, SiteService
from appliance.federation.unixclient import FEDERATION_SOCKET
from appliance.federation.unixhttp import Answer, Request, RequestError, Route, UnixServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.settings import Settings

MAX_BODY: Final = 2 * 2**20


def socket_path(settings: Settings) -> Path:
    """Return the socket on which the research zone serves the engine's processes."""
    return node.run_dir(settings) / FEDERATION_SOCKET


def serve(zone: node.ResearchZone) -> UnixServer:
    """Start serving; stop it with ``stop()``."""
    server = UnixServer(socket_path(zone.settings), routes(SiteService(zone)))
    server.start()
    return server


def routes(service: SiteService) -> list[Route]:
    """Return the routes of the site's service."""

    def propose(request: Request) -> object:
        body = request.json()
        plan, digest, told_by = body.get("plan"), body.get("plan_sha256"), body.get("told_by", "")
        if not isinstance(plan, dict) or not isinstance(digest, str) or not isinstance(told_by, str):
            raise RequestError(400, "expected plan and plan_sha256")
        return asdict(service.propose(plan, digest, told_by))

    def note_version(request: Request) -> object:
        protocol = request.json().get("protocol")
        if type(protocol) is not int:
            raise RequestError(400, "expected protocol")
        refusals.note_other_version(service.zone, protocol)
        return {}

    def begin(request: Request) -> object:
        return _begin(service, replica, _asked(request.json()))

    def watch(request: Request) -> object:
        view = service.watch(request.parameters["round_id"])
        if view is None:
            raise RequestError(404, "no such round")
        return asdict(view)

    def release(request: Request) -> object:
        leaving, signed = service.release(request.parameters["round_id"])
        headers = {"X-Receipt": signed.body_sha256, "X-Signature": signed.signature}
        return Answer(b"" if leaving.path is None else leaving.path.open("rb"), headers=headers)

    replica = Replica(service.zone)
    return [
        Route("POST", "/v1/plans", propose),
        Route("POST", "/v1/versions", note_version),
        *_keys(service.zone),
        *_files(service),
        Route("POST", "/v1/rounds", begin),
        Route("GET", "/v1/rounds/{round_id}", watch),
        *_ledger(replica),
        Route("POST", "/v1/rounds/{round_id}/update", release),
    ]


def _files(service: SiteService) -> list[Route]:
    """Return the routes by which what a round begins with comes."""

    def store(request: Request) -> object:
        base = request.query.get("base", "")
        service.store_model(_named(request, "model_sha256"), request.body.pieces(), base)
        return {}

    def store_mail(request: Request) -> object:
        service.store_mail(_named(request, "mail_sha256"), request.body.pieces())
        return {}

    max_bytes = service.zone.settings.federation.max_model_mib * 2**20
    return [
        Route("PUT", "/v1/models/{sha256}", store, max_bytes, streamed=True),
        Route("PUT", "/v1/mail/{sha256}", store_mail, max_bytes, streamed=True),
    ]


def _begin(service: SiteService, replica: Replica, asked: Asked) -> object:
    """Begin a round that the gate admits, on the model that the consortium's ledger names."""
    refused = service.decide(asked)
    if refused.standing != "admitted":
        return {"decision": asdict(refused), "round": None}
    held = replica.hold(asked.plan_sha256, asked.kind, asked.number, asked.model_sha256)
    if held is not None:
        return {"decision": asdict(Decision("refused", held.code, held.message)), "round": None}
    decision, view = service.begin(asked)
    return {"decision": asdict(decision), "round": None if view is None else asdict(view)}


def _keys(zone: node.ResearchZone) -> list[Route]:
    def take_key(request: Request) -> object:
        digest, text = (request.json().get(name) for name in ("plan_sha256", "key"))
        if not isinstance(digest, str) or not isinstance(text, str):
            raise RequestError(400, "expected plan_sha256 and key")
        try:
            sitekeys.take(zone, digest, text)
        except EnvelopeError as error:
            return {"code": "no_key", "message": str(error)[:300]}
        return {"code": "", "message": ""}

    def offer_key(request: Request) -> object:
        try:
            return {"code": "", "key": sitekeys.offer(zone, request.parameters["sha256"])}
        except EnvelopeError as error:
            return {"code": "no_key", "message": str(error)[:300]}

    return [
        Route("GET", "/v1/keys/{sha256}", offer_key),
        Route("POST", "/v1/keys", take_key, MAX_BODY),
    ]


def _ledger(replica: Replica) -> list[Route]:
    def keep(request: Request) -> object:
        try:
            kept = replica.receive(read_offer(request.json()))
        except BlockFormError as error:
            raise RequestError(400, str(error)) from error
        if isinstance(kept, Held):
            return asdict(kept)
        return {"code": "", "countersignature": asdict(kept)}

    def state(request: Request) -> object:
        statement, signature = replica.statement(request.parameters["round_id"])
        return {"statement": asdict(statement), "signature": signature}

    return [
        Route("POST", "/v1/consortium", keep, MAX_BODY),
        Route("GET", "/v1/rounds/{round_id}/statement", state),
    ]


def _named(request: Request, name: str) -> Asked:
    """Read the round that a file is for from the query, and the file's hash from the path."""
    number = request.query.get("number", "")
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise RequestError(400, "expected plan_sha256, kind and number in the query")
    return _asked({**request.query, "number": int(number), name: request.parameters["sha256"]})


def _asked(body: Mapping[str, Any]) -> Asked:
    number, mail = body.get("number"), body.get("mail_sha256", "")
    texts = [*(body.get(name) for name in ("plan_sha256", "kind", "model_sha256")), mail]
    if not isinstance(number, int) or isinstance(number, bool) or not all(isinstance(t, str) for t in texts):
        raise RequestError(400, "expected plan_sha256, kind, number and model_sha256")
    return Asked(str(texts[0]), str(texts[1]), number, str(texts[2]), str(mail))
