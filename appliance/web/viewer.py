"""The viewer at ``/viewer``: its files, its settings, and what its scripts may reach."""

from __future__ import annotations

import json
import mimetypes
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from appliance import viewer
from appliance.auth.rights import Right
from appliance.web.api.problems import problem
from appliance.web.gate import DICOMWEB, VISIT
from appliance.web.panel.markup import el
from appliance.web.panel.parts import url

if TYPE_CHECKING:
    from appliance.auth import Principal
    from appliance.viewer import Installed
    from appliance.web.desk import Desk, Visit

CONFIG: Final = "app-config.js"
STUDY_PAGE: Final = f"{viewer.ADDRESS}viewer"
_PAGE: Final = re.compile(r"[a-z-]*\Z")  # its own pages: the list of studies, and one for each mode
_HASHED: Final = re.compile(r"[0-9a-f]{16}")  # in the names of files that never change
_KEPT: Final = "private, max-age=31536000, immutable"
_KEPT_SHORTLY: Final = "private, max-age=3600"
_NEVER_KEPT: Final = {"cache-control": "no-store"}
_TYPES: Final = {".wasm": "application/wasm", ".js": "text/javascript"}
# ``httpErrorHandler``: a session that ended leads to the sign-in and back. The rest is data.
_SCRIPT: Final = """window.PUBLIC_URL = %(address)s;
window.browserImportFunction = name => import(name);
window.config = %(config)s;
window.config.httpErrorHandler = error => {
  if (error && error.status === 401) {
    const here = window.location.pathname + window.location.search;
    window.location.assign("/sign-in?next=" + encodeURIComponent(here));
  }
};
"""


def router(desk: Desk) -> APIRouter:
    """Return the routes of the viewer; without DICOMweb there is none."""
    routes = APIRouter(include_in_schema=False)
    if not desk.settings.dicomweb.enabled:
        return routes

    def show(request: Request, name: str = "") -> Response:  # no coroutine: it reads the disk
        visit: Visit = request.scope[VISIT]
        if not visit.viewer.may(Right.VIEW_IDENTITY):
            return problem(403, f"Expected the right {Right.VIEW_IDENTITY.value}.")
        found = viewer.installed(desk.zone.root, viewer.OHIF)
        if found is None:
            return problem(404, "The viewer is not installed; `cloister viewer install` brings it.")
        return _answer(request, found, name)

    routes.add_api_route(viewer.ADDRESS.rstrip("/"), show, methods=["GET"])
    routes.add_api_route(f"{viewer.ADDRESS}{{name:path}}", show, methods=["GET"])
    return routes


def address_of(desk: Desk, person: Principal, study_instance_uid: str) -> str:
    """Return where a person sees a study; empty where nobody does, or this person may not."""
    shown = desk.settings.dicomweb.enabled and person.may(Right.VIEW_IDENTITY)
    if not shown or viewer.installed(desk.zone.root, viewer.OHIF) is None:
        return ""
    return url(STUDY_PAGE, StudyInstanceUIDs=study_instance_uid)


def _answer(request: Request, found: Installed, name: str) -> Response:
    if _PAGE.match(name):
        return HTMLResponse(page(found), headers=_NEVER_KEPT)
    if name == CONFIG:
        return Response(script(), headers=_NEVER_KEPT, media_type="text/javascript")
    if name not in found.files or name.endswith(viewer.ZIPPED):
        return problem(404, "There is nothing here.")
    path = found.folder / name
    headers = {"cache-control": _KEPT if _HASHED.search(name) else _KEPT_SHORTLY, "vary": "Accept-Encoding"}
    zipped = name + viewer.ZIPPED
    if zipped in found.files and "gzip" in request.headers.get("accept-encoding", ""):
        path = found.folder / zipped
        headers["content-encoding"] = "gzip"
    if not path.is_file():
        return problem(404, "There is nothing here; `cloister viewer install` repairs the viewer.")
    kind = _TYPES.get(PurePosixPath(name).suffix) or mimetypes.guess_type(name)[0]
    return FileResponse(path, headers=headers, media_type=kind or "application/octet-stream")


def page(found: Installed) -> str:
    """Draw the page that starts the viewer."""
    at, version = viewer.ADDRESS, f"?v={found.version}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", "Viewer · Cloister"),
        el("link", rel="icon", href="/static/favicon.svg", type="image/svg+xml"),
        el("link", rel="stylesheet", href=f"{at}app.bundle.css{version}"),
        el("script", src=f"{at}{CONFIG}"),
        el("script", src=f"{at}{found.entry}", defer=True),
    )
    body = el("body", el("div", id="react-portal"), el("div", id="root"))
    return f"<!doctype html>{el('html', head, body, lang='en')}"


def script() -> str:
    """Write the viewer's settings: one data source, this very node."""
    return _SCRIPT % {"address": json.dumps(viewer.ADDRESS), "config": json.dumps(_config(), indent=2)}


def _config() -> dict[str, Any]:
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "cloister",
        "configuration": {
            "friendlyName": "Cloister",
            "name": "cloister",
            "wadoUriRoot": DICOMWEB,
            "qidoRoot": DICOMWEB,
            "wadoRoot": DICOMWEB,
            "qidoSupportsIncludeField": True,
            "supportsReject": False,
            "supportsFuzzyMatching": False,
            "supportsWildcard": True,
            "dicomUploadEnabled": False,
            "enableStudyLazyLoad": True,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "bulkDataURI": {"enabled": True},
        },
    }
    return {
        "routerBasename": viewer.ADDRESS.rstrip("/"),
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": True,
        "maxNumberOfWebWorkers": 3,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "showErrorDetails": "always",
        "defaultDataSourceName": "cloister",
        "dataSources": [source],
    }
