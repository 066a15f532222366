"""WADO-RS: stored instances as Part 10 files, their metadata and bulk data (PS3.18 10.4)."""

from __future__ import annotations

import json
import secrets
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - the framework reads annotations
from starlette.responses import Response, StreamingResponse

from dicom_node import part10
from dicom_node.dicomweb import media, metadata, representations
from dicom_node.dicomweb.frame import DICOMwebError, check_uids
from dicom_node.dicomweb.representations import DICOM, MULTIPART, OCTETS, Wish
from dicom_node.transcoding import TranscodingError, transcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastapi import APIRouter

    from dicom_node.dicomweb.frame import Frame
    from dicom_node.query import StoredInstance

    OnRetrieved = Callable[[Request, Sequence[StoredInstance]], None]

CHUNK_BYTES: Final = 1 << 20
STUDY: Final = "/studies/{StudyInstanceUID}"
SERIES: Final = STUDY + "/series/{SeriesInstanceUID}"
INSTANCE: Final = SERIES + "/instances/{SOPInstanceUID}"
_JSON_TYPES: Final = (media.JSON, "application/json")


def router(frame: Frame, on_retrieved: OnRetrieved) -> APIRouter:
    """Return the routes of the service.

    Parameters
    ----------
    frame : Frame
    on_retrieved : callable
        Is told, before they go, which instances a request gets; it may wait for a database.
    """
    routes = frame.router()

    def instances(request: Request) -> Response:  # no coroutine: it blocks, so it runs in a thread
        return _instances(found(frame, request), request, on_retrieved)

    def describe(request: Request) -> Response:
        return _describe(found(frame, request), request, frame.base_url(request), on_retrieved)

    def bulk(request: Request) -> Response:
        return _bulk(found(frame, request), request)

    for path in (STUDY, SERIES, INSTANCE):
        routes.add_api_route(path, instances, methods=["GET"], response_class=Response)
        routes.add_api_route(f"{path}/metadata", describe, methods=["GET"], response_class=Response)
    routes.add_api_route(
        f"{INSTANCE}/bulkdata/{{place:path}}", bulk, methods=["GET"], response_class=Response
    )
    return routes


def found(frame: Frame, request: Request) -> Sequence[StoredInstance]:
    """Return the instances that a path names.

    Raises
    ------
    DICOMwebError
        404 where there are none, 400 for what is no UID.
    """
    named = {name: value for name, value in request.path_params.items() if name.endswith("UID")}
    check_uids(**named)
    stored = frame.catalogue.instances(
        named["StudyInstanceUID"], named.get("SeriesInstanceUID", ""), named.get("SOPInstanceUID", "")
    )
    if not stored:
        raise DICOMwebError(404, "Nothing of this UID is stored here.")
    return stored


def _instances(stored: Sequence[StoredInstance], request: Request, on_retrieved: OnRetrieved) -> Response:
    wish, syntaxes = _agreed(stored, request)
    on_retrieved(request, stored)
    if not wish.multipart:
        body = _part10(stored[0], syntaxes[0])
        return StreamingResponse(_started(body), media_type=f"{DICOM}; transfer-syntax={syntaxes[0]}")
    boundary = secrets.token_hex(16)
    kind = f'{MULTIPART}; type="{DICOM}"; boundary={boundary}'
    return StreamingResponse(_started(_parts(stored, syntaxes, boundary)), media_type=kind)


def _agreed(stored: Sequence[StoredInstance], request: Request) -> tuple[Wish, list[str]]:
    """Return what of the Accept header can be given for all instances."""
    for wish in representations.wishes(media.accepted(request)):
        if not wish.multipart and len(stored) > 1:
            continue
        syntaxes = [representations.instance_syntax(wish, one.transfer_syntax_uid) for one in stored]
        if None not in syntaxes:
            return wish, [str(uid) for uid in syntaxes]
    raise DICOMwebError(
        406, f'Accept: expected {MULTIPART}; type="{DICOM}", with a transfer-syntax that can be given, or *.'
    )


def _parts(stored: Sequence[StoredInstance], syntaxes: Sequence[str], boundary: str) -> Iterator[bytes]:
    for one, syntax in zip(stored, syntaxes, strict=True):
        yield f"--{boundary}\r\nContent-Type: {DICOM}; transfer-syntax={syntax}\r\n\r\n".encode()
        yield from _part10(one, syntax)
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _started(body: Iterator[bytes]) -> Iterator[bytes]:
    """Make the first piece before the answer begins, so that it can still be a failure.

    Raises
    ------
    DICOMwebError
    """
    pieces = []
    for piece in body:
        pieces.append(piece)
        if not piece.startswith(b"--"):
            break
    return _chained(pieces, body)


def _chained(pieces: Sequence[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from pieces
    yield from rest


def _part10(one: StoredInstance, syntax: str) -> Iterator[bytes]:
    """Return a Part 10 file: file meta information that says nothing of who sent it, and the data set."""
    with _as(one, syntax) as path, path.open("rb") as file:
        offset = part10.decode(file.read(part10.MAX_META_BYTES)).data_offset
        file.seek(offset)
        yield part10.encode_plain(one.sop_class_uid, one.sop_instance_uid, syntax)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _as(one: StoredInstance, syntax: str) -> Iterator[Path]:
    if syntax == one.transfer_syntax_uid:
        yield one.path
        return
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        converted = Path(folder, "converted.dcm")
        try:
            transcode(one.path, converted, syntax)
        except TranscodingError as error:
            raise DICOMwebError(
                406, f"An instance cannot be given in this transfer syntax: {error}."
            ) from error
        yield converted


def _describe(
    stored: Sequence[StoredInstance], request: Request, base: str, on_retrieved: OnRetrieved
) -> Response:
    kind = media.choose(media.accepted(request), _JSON_TYPES)
    if kind is None:
        raise DICOMwebError(406, f"Accept: expected {media.JSON}.")
    on_retrieved(request, stored)
    return StreamingResponse(_started(_json(stored, base)), media_type=kind)


def _json(stored: Sequence[StoredInstance], base: str) -> Iterator[bytes]:
    lead = b"["
    for one in stored:
        try:
            attributes = metadata.describe(one.path, f"{base}{_path(one)}/bulkdata")
        except metadata.MetadataError as error:
            raise DICOMwebError(500, f"An instance cannot be described: {error}.") from error
        yield lead + json.dumps(attributes, allow_nan=False).encode()
        lead = b","
    yield b"]"


def _path(one: StoredInstance) -> str:
    series = f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
    return f"{series}/instances/{one.sop_instance_uid}"


def _bulk(stored: Sequence[StoredInstance], request: Request) -> Response:
    wishes = list(representations.wishes(media.accepted(request)))
    wish = next((one for one in wishes if one.kind in {OCTETS, "application/*", "*/*"}), None)
    if wish is None:
        raise DICOMwebError(406, f"Accept: expected {OCTETS}, alone or in {MULTIPART}.")
    try:
        value = metadata.bulk(stored[0].path, str(request.path_params["place"]))
    except metadata.MetadataError as error:
        raise DICOMwebError(404, f"{str(error).capitalize()}.") from error
    return one_or_multipart([value], wish, OCTETS)


def one_or_multipart(values: Sequence[bytes], wish: Wish, header: str) -> Response:
    """Return values as parts of one message, or the one value alone, as the client wishes."""
    if not wish.multipart:
        return Response(values[0], media_type=header)
    boundary = secrets.token_hex(16)
    parts = [f"--{boundary}\r\nContent-Type: {header}\r\n\r\n".encode() + value + b"\r\n" for value in values]
    kind = f'{MULTIPART}; type="{header.partition(";")[0]}"; boundary={boundary}'
    return Response(b"".join((*parts, f"--{boundary}--\r\n".encode())), media_type=kind)
