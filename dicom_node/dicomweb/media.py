"""Media types as requests write them: what a client accepts and what it sends (PS3.18 8.7, RFC 9110)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

JSON: Final = "application/dicom+json"
MAX_LENGTH: Final = 8192
MAX_RANGES: Final = 64
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z/-]+"
_TYPE: Final = re.compile(rf"\s*({_WORD})\s*")
_PARAMETER: Final = re.compile(rf';\s*({_WORD})\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*')


@dataclass(frozen=True)
class MediaType:
    """A media type or range; names are in lower case, values as written, ``q`` apart."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    quality: float = 1.0

    def covers(self, name: str) -> bool:
        """Whether a concrete type is in this range, parameters left aside."""
        return self.name in {name, "*/*", f"{name.partition('/')[0]}/*"}


def parse(text: str) -> tuple[MediaType, ...]:
    """Return the media types of a header's value, the most wanted first; what is malformed ends the list."""
    found: list[MediaType] = []
    position = 0
    text = text[:MAX_LENGTH]
    while position < len(text) and len(found) < MAX_RANGES:
        head = _TYPE.match(text, position)
        if head is None:
            break
        position = head.end()
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(text, position)) is not None:
            parameters[parameter[1].lower()] = _plain(parameter[2])
            position = parameter.end()
        found.append(
            MediaType(head[1].lower(), MappingProxyType(parameters), _quality(parameters.pop("q", "1")))
        )
        if position < len(text) and text[position] != ",":
            break
        position += 1
    return tuple(sorted(found, key=lambda one: -one.quality))


def accepted(request: Request) -> tuple[MediaType, ...]:
    """Return what the client accepts: the ``accept`` query parameter before the header (PS3.18 8.3.3.1).

    Nothing said, or nothing legible, means anything.
    """
    asked = request.query_params.getlist("accept")
    found = parse(",".join(asked or request.headers.getlist("accept")))
    return tuple(one for one in found if one.quality > 0) or (MediaType("*/*"),)


def choose(wanted: Sequence[MediaType], offered: Sequence[str]) -> str | None:
    """Return the offered type that is wanted most, parameters left aside; None when there is none."""
    for one in wanted:
        for name in offered:
            if one.covers(name):
                return name
    return None


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0
