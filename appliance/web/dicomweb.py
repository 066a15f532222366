"""DICOMweb on the panel's address, under ``/dicom-web``: who may ask, and the services' surroundings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import Depends, FastAPI, Request

from appliance import logs
from appliance.auth.rights import Right
from appliance.catalogue import DatabaseCatalogue
from appliance.filing import open_inbox
from appliance.traffic import IN, Flow
from appliance.web.gate import DICOMWEB, VISIT
from appliance.web.reads import Reads
from appliance.web.timing import Timed
from dicom_node.dicomweb import frames, qido, stow, wado
from dicom_node.dicomweb.frame import DICOMwebError, Frame
from dicom_node.ports import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from appliance.traffic import Meter
    from appliance.web.desk import Desk, Visit

PERSON: Final = "WEB"  # sender of what a signed-in browser stores
WRITER: Final = "web"  # of the inbox
FAILED: Final = "dicomweb.failed"
STORED: Final = "dicomweb.stored"
_logger = logs.logger(__name__)


def mount(app: FastAPI, desk: Desk) -> None:
    """Add the services to the application, unless the settings say otherwise."""
    if not desk.settings.dicomweb.enabled:
        return
    app.add_middleware(Timed)
    for routes, right in routers(desk):
        app.include_router(routes, prefix=DICOMWEB, dependencies=[Depends(_needs(right))])


def routers(desk: Desk) -> list[tuple[APIRouter, Right]]:
    """Return each service with the right that all its routes need."""
    frame = Frame(DatabaseCatalogue(desk.zone), _base_url(desk), _note)
    settings = desk.settings
    reception = stow.Reception(
        inbox=open_inbox(desk.zone, WRITER),
        caller_of=_caller_of(settings.dicom.ae_title),
        on_stored=_note_stored_with(desk.meter),
        max_requests=settings.dicomweb.max_stores,
        timeout_s=settings.dicom.network_timeout_s,
    )
    reads = Reads(desk)
    return [
        (qido.router(frame, max_results=settings.dicomweb.max_results), Right.VIEW_IDENTITY),
        (wado.router(frame, reads.note_sent), Right.VIEW_IDENTITY),
        (frames.router(frame, reads.note), Right.VIEW_IDENTITY),
        (stow.router(frame, reception), Right.STORE_STUDIES),
    ]


def _base_url(desk: Desk) -> Callable[[Request], str]:
    public = desk.settings.web.public_url.rstrip("/")

    def base_url(request: Request) -> str:
        return f"{public or str(request.base_url).rstrip('/')}{DICOMWEB}"

    return base_url


def _caller_of(called_ae_title: str) -> Callable[[Request], Caller]:
    """Let the token's name stand where an AE title stands: rules tell senders apart by it."""

    def caller_of(request: Request) -> Caller:
        visit: Visit = request.scope[VISIT]
        address = request.client.host if request.client is not None else ""
        return Caller(
            visit.bearer[:16] or PERSON, called_ae_title, address, tls=request.url.scheme == "https"
        )

    return caller_of


def _needs(right: Right) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        visit: Visit | None = request.scope.get(VISIT)
        if visit is None or not visit.viewer.may(right):
            raise DICOMwebError(403, f"Expected the right {right.value}.")

    return check


def _note_stored_with(meter: Meter) -> Callable[[Caller, int, int], None]:
    def note_stored(caller: Caller, stored: int, refused: int) -> None:
        meter.note(Flow(IN, caller.calling_ae_title, associations=1, failures=refused))
        _logger.info(STORED, stored=stored, refused=refused)

    return note_stored


def _note(error: Exception) -> None:
    _logger.error(FAILED, exc_info=error)
