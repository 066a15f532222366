"""DICOMweb on the panel's address, under ``/dicom-web``: who may ask, and the services' surroundings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import Depends, FastAPI, Request

from appliance import logs
from appliance.auth.rights import Right
from appliance.catalogue import DatabaseCatalogue
from appliance.web.gate import DICOMWEB, VISIT
from dicom_node.dicomweb import qido
from dicom_node.dicomweb.frame import DICOMwebError, Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from appliance.web.desk import Desk, Visit

FAILED: Final = "dicomweb.failed"
_logger = logs.logger(__name__)


def mount(app: FastAPI, desk: Desk) -> None:
    """Add the services to the application, unless the settings say otherwise."""
    if not desk.settings.dicomweb.enabled:
        return
    for routes, right in routers(desk):
        app.include_router(routes, prefix=DICOMWEB, dependencies=[Depends(_needs(right))])


def routers(desk: Desk) -> list[tuple[APIRouter, Right]]:
    """Return each service with the right that all its routes need."""
    frame = Frame(DatabaseCatalogue(desk.zone), _base_url(desk), _note)
    settings = desk.settings.dicomweb
    return [(qido.router(frame, max_results=settings.max_results), Right.VIEW_IDENTITY)]


def _base_url(desk: Desk) -> Callable[[Request], str]:
    public = desk.settings.web.public_url.rstrip("/")

    def base_url(request: Request) -> str:
        return f"{public or str(request.base_url).rstrip('/')}{DICOMWEB}"

    return base_url


def _needs(right: Right) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        visit: Visit | None = request.scope.get(VISIT)
        if visit is None or not visit.viewer.may(right):
            raise DICOMwebError(403, f"Expected the right {right.value}.")

    return check


def _note(error: Exception) -> None:
    _logger.error(FAILED, exc_info=error)
