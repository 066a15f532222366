"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = "application/problem+json"


def problem(status: int, detail: str) -> ProblemResponse:
    """Return a problem document with the status's own title.

    Parameters
    ----------
    status : int
        HTTP status code.
    detail : str
        For the person or program that asked; no patient's value.
    """
    title = HTTPStatus(status).phrase
    return ProblemResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail}, status_code=status
    )
