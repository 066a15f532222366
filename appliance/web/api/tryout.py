"""``POST /api/v1/rules/try``: what rules would do with one DICOM file; it is read and forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import JSONResponse, Response

from appliance import tryout
from appliance.auth.rights import Right
from appliance.conditions import RuleError
from appliance.web.api.problems import problem
from appliance.web.gate import VISIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.web.desk import Desk

PATH = "/api/v1/rules/try"


def route(desk: Desk) -> Callable[[Request], Any]:
    """Return the endpoint; the body is the file, ``rule`` and ``from`` stand in the query."""

    async def try_file(request: Request) -> Response:
        visit = request.scope.get(VISIT)
        if visit is None or not visit.viewer.may(Right.MANAGE_PEERS):
            return problem(403, "You do not have the right to do this.")
        rule = request.query_params.get("rule", "")[:64] or None
        sender = request.query_params.get("from", "")[:16]
        try:
            with tryout.Upload(desk.zone.root) as upload:
                async for chunk in request.stream():
                    await to_thread.run_sync(upload.write, chunk)
                outcome = await to_thread.run_sync(tryout.on_file, desk.zone, upload.path, sender, rule)
        except RuleError as error:
            return problem(409, f"Not tried: {error}.")
        said = [one.text for one in outcome.explanation]
        return JSONResponse({"message": "\n".join(said), "outcome": outcome.as_json()})

    return try_file
