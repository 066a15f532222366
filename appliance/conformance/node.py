"""What a node offers, as it says itself: its DIMSE services and its DICOMweb routes."""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from appliance.node import ClinicalZone
    from dicom_node.negotiation import Roles
    from dicom_node.services import Service

_STATUS: Final = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_SMALL: Final = frozenset({"SUCCESS", "PENDING"})
_REFUSED: Final = re.compile(r"DICOMwebError\(\s*(\d{3})\b")


@dataclass(frozen=True)
class DIMSEService:
    """A service class of the SCP: what it serves, by which operations, with which statuses."""

    module: str
    roles: dict[str, Roles]
    operations: tuple[str, ...]
    statuses: dict[str, int]
    sends_instances: bool


@dataclass(frozen=True)
class WebRoute:
    """A route under DICOMweb's path; ``module`` is the service that answers, ``right`` what a user needs."""

    module: str
    method: str
    path: str
    right: str


@dataclass(frozen=True)
class Inspected:
    """A node with the settings that it has of itself."""

    settings: Settings
    services: tuple[DIMSEService, ...]
    routes: tuple[WebRoute, ...]


def inspected() -> Inspected:
    """Make a node in a temporary folder, ask it, and remove it."""
    from appliance import dimse, node  # noqa: PLC0415 - the whole product

    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        settings = Settings.model_validate({"data_root": Path(folder) / "data"})
        node.create_node(settings, "clinical")
        zone = node.open_clinical(settings)
        try:
            services = tuple(_service(service) for service in dimse.services(zone))
            routes = tuple(_routes(zone))
        finally:
            zone.engine.dispose()
    return Inspected(settings, services, routes)


def _service(service: Service) -> DIMSEService:
    answer = next(iter(service.answers.values()))
    module = sys.modules[answer.__module__]
    return DIMSEService(
        module=module.__name__.rpartition(".")[2],
        roles=dict(service.roles),
        operations=tuple(kind.__name__.replace("_", "-") for kind in service.answers),
        statuses=statuses(module),
        sends_instances=service.sends_instances,
    )


def statuses(module: ModuleType) -> dict[str, int]:
    """Return the statuses that a module names: its public numbers of four hexadecimal digits."""
    found = {}
    for name, value in vars(module).items():
        if not (_STATUS.match(name) and isinstance(value, int)) or name.startswith("MAX_"):
            continue
        if name in _SMALL or 0x0100 <= value <= 0xFFFF:
            found[name] = value
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _routes(zone: ClinicalZone) -> Iterable[WebRoute]:
    from fastapi.routing import APIRoute  # noqa: PLC0415 - as above

    from appliance.research_client import connect  # noqa: PLC0415
    from appliance.web import dicomweb  # noqa: PLC0415
    from appliance.web.desk import Desk  # noqa: PLC0415

    for router, right in dicomweb.routers(Desk(zone.settings, zone, connect(zone.settings))):
        for route in router.routes:
            if isinstance(route, APIRoute):
                module = inspect.unwrap(route.endpoint).__module__.rpartition(".")[2]
                for method in sorted((route.methods or set()) - {"HEAD"}):
                    yield WebRoute(module, method, route.path, right.value)


def refusals(module: str) -> list[int]:
    """Return the HTTP statuses with which a service and what it shares with others refuse a request."""
    names = (f"dicom_node.dicomweb.{module}", "dicom_node.dicomweb.frame")
    text = "\n".join(inspect.getsource(sys.modules[name]) for name in names if name in sys.modules)
    return sorted({int(code) for code in _REFUSED.findall(text)})
