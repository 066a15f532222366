"""WADO-RS: frames as they are stored or decoded, rendered pictures and thumbnails (PS3.18 10.4.1)."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - the framework reads annotations
from starlette.responses import Response, StreamingResponse

from dicom_node.dicomweb import media, representations
from dicom_node.dicomweb.frame import DICOMwebError
from dicom_node.dicomweb.representations import MULTIPART
from dicom_node.dicomweb.wado import INSTANCE, SERIES, STUDY, found
from dicom_node.images import MAX_SIDE, Image, ImageError, Look, Window
from dicom_node.transcoding import DECODED, UNCOMPRESSED, TranscodingError, transcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastapi import APIRouter

    from dicom_node.dicomweb.frame import Frame
    from dicom_node.dicomweb.representations import FrameForm, Wish
    from dicom_node.query import StoredInstance

    OnRetrieved = Callable[[Request, Sequence[StoredInstance]], None]

PICTURES: Final = ("image/jpeg", "image/png")
THUMBNAIL_SIDE: Final = 128
MAX_LISTED: Final = 10_000
_FUNCTIONS: Final = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


def router(frame: Frame, on_retrieved: OnRetrieved) -> APIRouter:
    """Return the routes of the service; see :func:`dicom_node.dicomweb.wado.router`."""
    routes = frame.router()

    def frames(request: Request) -> Response:  # no coroutine: it blocks, so it runs in a thread
        stored = found(frame, request)
        on_retrieved(request, stored)
        return _frames(stored[0], request)

    def rendered(request: Request) -> Response:
        stored = found(frame, request)
        on_retrieved(request, stored)
        return _rendered(stored, request, box=None)

    def thumbnail(request: Request) -> Response:
        stored = found(frame, request)
        on_retrieved(request, stored)
        return _rendered(stored, request, box=(THUMBNAIL_SIDE, THUMBNAIL_SIDE))

    listed = f"{INSTANCE}/frames/{{frames}}"
    routes.add_api_route(listed, frames, methods=["GET"], response_class=Response)
    for path in (STUDY, SERIES, INSTANCE, listed):
        routes.add_api_route(f"{path}/rendered", rendered, methods=["GET"], response_class=Response)
        routes.add_api_route(f"{path}/thumbnail", thumbnail, methods=["GET"], response_class=Response)
    return routes


def _frames(one: StoredInstance, request: Request) -> Response:
    image = _opened(one)
    numbers = _listed(str(request.path_params["frames"]), image.frames)
    wish, form = _agreed(one, request, alone=len(numbers) == 1)
    parts = _contents(one, image, numbers, form)
    try:
        first = next(parts)
    except (ImageError, TranscodingError) as error:
        raise DICOMwebError(406, f"A frame cannot be given in this form: {error}.") from error
    if not wish.multipart:
        return Response(first, media_type=form.header)
    boundary = secrets.token_hex(16)
    kind = f'{MULTIPART}; type="{form.media_type}"; boundary={boundary}'
    message = _message(first, parts, form, boundary)
    if len(numbers) == 1:  # as viewers ask; it is in memory already
        return Response(b"".join(message), media_type=kind)
    return StreamingResponse(message, media_type=kind)


def _opened(one: StoredInstance) -> Image:
    try:
        return Image(one.path)
    except ImageError as error:
        raise DICOMwebError(404, f"There are no frames: {error}.") from error


def _listed(text: str, frames: int) -> list[int]:
    words = text.split(",")
    well = len(words) <= MAX_LISTED and all(
        word.isascii() and word.isdigit() and len(word) <= 9 for word in words
    )
    if not well or not all(int(word) for word in words):
        raise DICOMwebError(400, "frames: expected numbers from 1, by commas.")
    numbers = [int(word) for word in words]
    if max(numbers) > frames:
        raise DICOMwebError(404, f"frames: expected numbers from 1 to {frames}.")
    return numbers


def _agreed(one: StoredInstance, request: Request, *, alone: bool) -> tuple[Wish, FrameForm]:
    for wish in representations.wishes(media.accepted(request)):
        form = representations.frame_form(wish, one.transfer_syntax_uid)
        if form is not None and (wish.multipart or alone):
            return wish, form
    raise DICOMwebError(
        406, f"Accept: expected {MULTIPART} with a type and a transfer-syntax that can be given, or *."
    )


def _contents(one: StoredInstance, image: Image, numbers: Sequence[int], form: FrameForm) -> Iterator[bytes]:
    plain = form.transfer_syntax in UNCOMPRESSED
    if plain or form.transfer_syntax == one.transfer_syntax_uid:
        for number in numbers:
            yield image.decoded(number) if plain else image.stored(number)
        return
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        converted = Path(folder, "converted.dcm")
        transcode(one.path, converted, form.transfer_syntax)
        other = Image(converted)
        for number in numbers:
            yield other.stored(number)


def _message(first: bytes, rest: Iterator[bytes], form: FrameForm, boundary: str) -> Iterator[bytes]:
    head = f"--{boundary}\r\nContent-Type: {form.header}\r\n\r\n".encode()
    yield head + first + b"\r\n"
    for content in rest:
        yield head + content + b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _rendered(stored: Sequence[StoredInstance], request: Request, box: tuple[int, int] | None) -> Response:
    kind = media.choose(media.accepted(request), PICTURES)
    if kind is None:
        raise DICOMwebError(406, f"Accept: expected one of {', '.join(PICTURES)}.")
    given = request.query_params
    look = Look(
        window=_window(given["window"]) if "window" in given else None,
        box=_box(given["viewport"]) if "viewport" in given else box,
        kind=kind,
        quality=_quality(given["quality"]) if "quality" in given else 90,
    )
    one = _representative(stored)
    image = _opened(one)
    asked = str(request.path_params.get("frames", (image.frames + 1) // 2))
    numbers = _listed(asked, image.frames)
    if len(numbers) > 1:
        raise DICOMwebError(400, "frames: expected one number for a picture.")
    try:
        return Response(image.rendered(numbers[0], look), media_type=kind)
    except ImageError as error:
        raise DICOMwebError(406, f"There is no picture: {error}.") from error


def _representative(stored: Sequence[StoredInstance]) -> StoredInstance:
    """Return the middle one of those that may have pixels."""
    known = UNCOMPRESSED | DECODED
    pictured = [one for one in stored if one.number_of_frames != 0 and one.transfer_syntax_uid in known]
    chosen = pictured or list(stored)
    return chosen[len(chosen) // 2]


def _window(text: str) -> Window:
    words = text.split(",")
    try:
        center, width = float(words[0]), float(words[1])
        function = _FUNCTIONS[words[2].strip().lower()] if len(words) > 2 else "LINEAR"
    except (ValueError, IndexError, KeyError):
        raise DICOMwebError(
            400, f"window: expected centre, width and one of {', '.join(_FUNCTIONS)}."
        ) from None
    if not (abs(center) < 1e9 and 0 < width < 1e9) or (function == "LINEAR" and width < 1):
        raise DICOMwebError(400, "window: expected a width from 1.")
    return Window(center, width, function)


def _box(text: str) -> tuple[int, int]:
    words = text.split(",")
    if len(words) < 2 or not all(word.isascii() and word.isdigit() for word in words[:2]):
        raise DICOMwebError(400, "viewport: expected width and height in pixels.")
    if any(words[2:]):
        raise DICOMwebError(400, "viewport: a part of a frame is not rendered here.")
    width, height = int(words[0][:9]), int(words[1][:9])
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise DICOMwebError(400, f"viewport: expected from 1 to {MAX_SIDE} pixels.")
    return width, height


def _quality(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 100):
        raise DICOMwebError(400, "quality: expected a number from 1 to 100.")
    return int(text)
