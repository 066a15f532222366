"""What people and programs send: read up to a limit, refused where it cannot be meant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from fastapi import Request

MAX_FORM_FIELDS = 10


class BodyError(ApplianceError):
    """A body that cannot be read; answered 400."""


async def read(request: Request, limit_bytes: int) -> bytes:
    """Return the body; raises BodyError when it is longer than allowed."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > limit_bytes:
            raise BodyError(f"body: expected at most {limit_bytes} bytes")
    return content


def parsed(content: bytes) -> object:
    """Return what a JSON body says, an empty object for none; raises BodyError for anything else."""
    try:
        return json.loads(content) if content else {}
    except (ValueError, RecursionError):
        raise BodyError("body: expected JSON") from None


def fields_of_form(content: bytes) -> dict[str, str]:
    """Return the first value of each field of a form; raises BodyError for what is none."""
    try:
        fields = parse_qs(content.decode("utf-8", errors="replace"), max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise BodyError(f"body: expected a form of at most {MAX_FORM_FIELDS} fields") from None
    return {key: checked(values[0]) for key, values in fields.items()}


def checked(text: str) -> str:
    """Return a text that every database takes; raises BodyError for NUL and for half a surrogate pair."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise BodyError("body: expected text without NUL, in whole characters")
    return text
