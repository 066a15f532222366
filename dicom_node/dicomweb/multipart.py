"""Multipart messages as they arrive (RFC 2046 5.1, RFC 2387): a push parser that holds no part in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicom_node.dicomweb import media
from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_HEADER_BYTES: Final = 16_384
MAX_HEADERS: Final = 32
MAX_MARGIN_BYTES: Final = 65_536  # before the first delimiter, and behind the last one
_MAX_PADDING: Final = 128
# RFC 2046 5.1.1 says 70 at most, but Orthanc's are 73 long.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]\Z")
_BEHIND: Final = re.compile(rb"(--)|[ \t]{0,%d}\r\n" % _MAX_PADDING)
_PERHAPS: Final = re.compile(rb"(?:-|[ \t]{0,%d}\r?)\Z" % _MAX_PADDING)
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
_LINE: Final = b"\r\n"


class MultipartError(DICOMNodeError):
    """A message that is no multipart message, or not to its end."""


@dataclass(frozen=True)
class PartBegin:
    """A part begins; header names are in lower case."""

    headers: Mapping[str, str]

    @property
    def content_type(self) -> media.MediaType | None:
        """What the part says it is; None when it says nothing legible."""
        return next(iter(media.parse(self.headers.get("content-type", ""))), None)


@dataclass(frozen=True)
class PartData:
    """The next bytes of the part that began last."""

    data: bytes


@dataclass(frozen=True)
class PartEnd:
    """The part that began last is whole."""


Event = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = 1
    HEADERS = 2
    BODY = 3
    EPILOGUE = 4


def boundary_of(content_type: media.MediaType) -> str:
    """Return the boundary that a content type names.

    Raises
    ------
    MultipartError
        Where there is none of the characters that RFC 2046 5.1.1 allows.
    """
    boundary = content_type.parameters.get("boundary", "")
    if not _BOUNDARY.match(boundary):
        raise MultipartError("boundary: expected 1 to 200 characters of RFC 2046 5.1.1")
    return boundary


class MultipartParser:
    """Takes a message in pieces of any size and says what they hold.

    A delimiter is a line of its own: what only looks like one, in the middle of pixels, is data. Memory is
    bounded by the piece that is fed and :data:`MAX_HEADER_BYTES`.

    Parameters
    ----------
    boundary : str
        See :func:`boundary_of`.
    """

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._buffer = _LINE  # as if a line had ended: the first delimiter may be the first line
        self._at = 0
        self._hidden = len(_LINE)  # bytes at the front that are no data, but may begin a delimiter
        self._margin = 0
        self._state = _State.PREAMBLE

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes; go through all that this gives before the next call.

        Raises
        ------
        MultipartError
            When a limit is passed or a header cannot be read. Feed nothing more then.
        """
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        while (event := self._next()) is not None:
            yield event

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises
        ------
        MultipartError
            When the last delimiter has not come: the last part may be cut off.
        """
        if self._state is not _State.EPILOGUE:
            raise MultipartError("multipart: expected a closing delimiter at the end")

    def _next(self) -> Event | None:
        if self._state is _State.PREAMBLE:
            self._pass_preamble()
        if self._state is _State.HEADERS:
            return self._begin()
        if self._state is _State.BODY:
            return self._continue()
        if self._state is _State.EPILOGUE:
            self._pass(len(self._buffer))
        return None

    def _pass_preamble(self) -> None:
        index, end, closing = self._find()
        self._pass(index)
        if end is not None:
            self._go_on(end, closing=closing)

    def _pass(self, index: int) -> None:
        self._margin += index - self._at
        self._at = index
        if self._margin > MAX_MARGIN_BYTES:
            raise MultipartError(f"multipart: expected at most {MAX_MARGIN_BYTES} bytes outside of parts")

    def _begin(self) -> Event | None:
        """Read the headers, from the end of the delimiter's line on: there may be none."""
        end = self._buffer.find(_LINE + _LINE, self._at)
        if (end if end >= 0 else len(self._buffer)) - self._at > MAX_HEADER_BYTES:
            raise MultipartError(f"multipart: expected at most {MAX_HEADER_BYTES} bytes of headers in a part")
        if end < 0:
            return None
        headers = _headers(self._buffer[self._at + len(_LINE) : end])
        self._at, self._hidden = end + len(_LINE), len(_LINE)
        self._state = _State.BODY
        return PartBegin(headers)

    def _continue(self) -> Event | None:
        index, end, closing = self._find()
        start = self._at + self._hidden
        if index > start:
            data = self._buffer[start:index]
            self._at, self._hidden = index, 0
            return PartData(data)
        if end is None:
            return None
        self._go_on(end, closing=closing)
        return PartEnd()

    def _go_on(self, end: int, *, closing: bool) -> None:
        self._at = end
        self._state = _State.EPILOGUE if closing else _State.HEADERS

    def _find(self) -> tuple[int, int | None, bool]:
        """Look for a delimiter.

        Returns
        -------
        tuple
            Index up to which there is none; where the delimiter there ends (its line's end is left, for
            headers), None without one or while that is undecided; whether it is the last one.
        """
        buffer, length = self._buffer, len(self._delimiter)
        index = buffer.find(self._delimiter, self._at)
        while index >= 0:
            behind = index + length
            found = _BEHIND.match(buffer, behind)
            if found is not None:
                closing = found[1] is not None
                return index, found.end() - (0 if closing else len(_LINE)), closing
            if _PERHAPS.match(buffer, behind) is not None:
                return index, None, False
            index = buffer.find(self._delimiter, index + 1)
        return max(self._at, len(buffer) - length + 1), None, False


def _headers(raw: bytes) -> Mapping[str, str]:
    text = re.sub(r"\r\n[ \t]+", " ", raw.decode("latin-1"))
    found: dict[str, str] = {}
    for line in text.split("\r\n") if text else ():
        header = _HEADER.match(line)
        if header is None or header[1].lower() in found or len(found) >= MAX_HEADERS:
            raise MultipartError("multipart: expected headers of a part as name: value, each once")
        found[header[1].lower()] = header[2].strip()
    return MappingProxyType(found)
