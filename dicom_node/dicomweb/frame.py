"""What the DICOMweb services share: their surroundings, errors, and checks of paths (PS3.18 section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from dicom_node.errors import DICOMNodeError
from dicom_node.index import is_uid
from dicom_node.query import QueryError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from dicom_node.ports import Catalogue

RETRY_AFTER_S: Final = 30


class DICOMwebError(DICOMNodeError):
    """A request answered with a failure; the detail says what was expected, never a patient's value."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Frame:
    """The surroundings of the services.

    Parameters
    ----------
    catalogue : Catalogue
        Blocks: call it off the event loop.
    base_url : callable
        The address of the services as the asker sees it, without a slash at its end.
    on_failed : callable
        Is told of an unforeseen error, which is answered 500 without its text.
    """

    catalogue: Catalogue
    base_url: Callable[[Request], str]
    on_failed: Callable[[Exception], None]

    def router(self) -> APIRouter:
        """Return a router whose routes answer :class:`DICOMwebError` and ``QueryError`` as they should."""
        on_failed = self.on_failed

        class Route(APIRoute):
            """A route at the edge of the process."""

            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                inner = super().get_route_handler()

                async def answer(request: Request) -> Response:
                    try:
                        return await inner(request)
                    except DICOMwebError as error:
                        return problem(error.status, error.detail, error.headers)
                    except QueryError as error:
                        return problem(400, f"{error}.")
                    except (HTTPException, RequestValidationError):
                        raise
                    except Exception as error:  # noqa: BLE001 -- the edge: told, and answered 500
                        on_failed(error)
                        return problem(500, "The request could not be answered; the node's log says why.")

                return answer

        return APIRouter(route_class=Route, include_in_schema=False)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document (RFC 9457) with the status's own title."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, dict(headers or {}), media_type="application/problem+json")


def check_uids(**named: str) -> None:
    """Refuse what stands in a path and is no UID.

    Raises
    ------
    DICOMwebError
        400, with the name.
    """
    for name, text in named.items():
        if not is_uid(text):
            raise DICOMwebError(400, f"{name}: expected a UID (PS3.5 9.1).")
