"""QIDO-RS: searching for studies, series and instances (PS3.18 10.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request  # noqa: TC002 - the framework reads annotations
from starlette.responses import JSONResponse, Response

from dicom_node.dicomweb import datasets, media
from dicom_node.dicomweb.frame import DICOMwebError, check_uids
from dicom_node.query import MATCHED, RETURNED, Level, Match, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fastapi import APIRouter

    from dicom_node.dicomweb.frame import Frame

JSON_TYPES: Final = (media.JSON, "application/json")
MAX_PARAMETERS: Final = 200
MAX_OFFSET: Final = 2**31
MAX_WARNINGS: Final = 10
_SWITCHES: Final = frozenset({"fuzzymatching", "emptyvaluematching", "multiplevaluematching"})
_ELSEWHERE: Final = frozenset({"accept", "charset"})
_ALL: Final = {
    Level.STUDY: "/studies",
    Level.SERIES: "/series",
    Level.IMAGE: "/instances",
}
# PS3.18 table 10.6.3-3..5: attributes in every answer. What the asker names is added.
_STUDY: Final = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ModalitiesInStudy",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
_SERIES: Final = (
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "NumberOfSeriesRelatedInstances",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
)
_IMAGE: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "AvailableTransferSyntaxUID",
)


@dataclass(frozen=True)
class Search:
    """What a request asks for, as far as this node can answer it."""

    query: Query
    returned: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    limit: int = 0  # of the request; the query asks for one more, to know whether there is


def router(frame: Frame, *, max_results: int) -> APIRouter:
    """Return the routes of the service.

    Parameters
    ----------
    frame : Frame
    max_results : int
        Answers to one request at most.
    """
    routes = frame.router()

    def add(path: str, level: Level) -> None:
        def search(request: Request) -> Response:  # no coroutine: it blocks, so it runs in a thread
            return _answer(frame, request, level, max_results)

        routes.add_api_route(path, search, methods=["GET"], response_class=Response)

    for level, path in _ALL.items():
        add(path, level)
    add("/studies/{StudyInstanceUID}/series", Level.SERIES)
    add("/studies/{StudyInstanceUID}/instances", Level.IMAGE)
    add("/studies/{StudyInstanceUID}/series/{SeriesInstanceUID}/instances", Level.IMAGE)
    return routes


def _answer(frame: Frame, request: Request, level: Level, max_results: int) -> Response:
    kind = media.choose(media.accepted(request), JSON_TYPES)
    if kind is None:
        raise DICOMwebError(406, f"Accept: expected {media.JSON}.")
    parameters = request.query_params.multi_items()
    if len(parameters) > MAX_PARAMETERS:
        raise DICOMwebError(400, f"Expected at most {MAX_PARAMETERS} parameters.")
    fixed = {name: str(value) for name, value in request.path_params.items()}
    check_uids(**fixed)
    search = parse(parameters, level, fixed, max_results)
    found = frame.catalogue.find(search.query)
    warnings = list(search.warnings)
    if len(found) > search.limit:
        warnings.append("There are additional results that can be requested.")
    base = frame.base_url(request)
    content = [_one(answer, level, search.returned, base) for answer in found[: search.limit]]
    return JSONResponse(content, headers=_warning(base, warnings), media_type=kind)


def parse(
    parameters: list[tuple[str, str]], level: Level, fixed: Mapping[str, str], max_results: int
) -> Search:
    """Read the parameters of a search (PS3.18 8.3.4, 10.6.1.2).

    What this node does not match is left out, with a warning.

    Raises
    ------
    DICOMwebError
        400, when a parameter cannot be read, or stands twice with different values.
    """
    match: dict[str, str] = dict(fixed)
    warnings: list[str] = []
    included: list[str] = []
    numbers = {"limit": max_results, "offset": 0}
    for name, value in parameters:
        if name == "includefield":
            included.extend(_included(value, level))
        elif name in numbers:
            numbers[name] = _number(name, value)
        elif name in _SWITCHES:
            warnings.extend(_switch(name, value))
        elif name not in _ELSEWHERE:
            warnings.extend(_add_key(match, level, name, value))
    limit = min(numbers["limit"], max_results)
    query = Query(level, match, limit=limit + 1, offset=numbers["offset"])
    returned = dict.fromkeys((*_defaults(level, fixed), *match, *included))
    return Search(query, tuple(returned), tuple(dict.fromkeys(warnings))[:MAX_WARNINGS], limit)


def _add_key(match: dict[str, str], level: Level, name: str, value: str) -> Iterator[str]:
    keyword = datasets.keyword_of(name)
    if keyword is None:
        raise DICOMwebError(
            400, "A parameter is neither a DICOM keyword nor a tag of eight hexadecimal digits."
        )
    kind = MATCHED[level].get(keyword) if "." not in name else None
    if kind is None:
        yield f"{keyword} is not matched at this level; it was left out."
        return
    if kind is Match.UID:
        value = value.replace(",", "\\")
    if match.get(keyword, value) != value:
        raise DICOMwebError(400, f"{keyword}: expected one value.")
    match[keyword] = value


def _included(value: str, level: Level) -> Iterator[str]:
    for name in value.split(",")[:MAX_PARAMETERS]:
        if name.strip().lower() == "all":
            yield from RETURNED[level]
            continue
        keyword = datasets.keyword_of(name.strip())
        if keyword is None:
            raise DICOMwebError(400, "includefield: expected DICOM keywords, tags, or all.")
        yield keyword


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= MAX_OFFSET):
        raise DICOMwebError(400, f"{name}: expected a whole number from 0 to {MAX_OFFSET}.")
    return int(value)


def _switch(name: str, value: str) -> Iterator[str]:
    if value.lower() not in {"true", "false"}:
        raise DICOMwebError(400, f"{name}: expected true or false.")
    if value.lower() == "true":
        yield f"The {name} parameter is not supported. Only literal matching has been performed."


def _defaults(level: Level, fixed: Mapping[str, str]) -> tuple[str, ...]:
    """Return what every answer holds: of the levels above only what the path does not say already."""
    study = ("StudyInstanceUID",) if "StudyInstanceUID" in fixed else _STUDY
    series = ("SeriesInstanceUID",) if "SeriesInstanceUID" in fixed else _SERIES
    return {Level.STUDY: _STUDY, Level.SERIES: (*study, *_SERIES)}.get(level, (*study, *series, *_IMAGE))


def _one(answer: Mapping[str, str], level: Level, returned: tuple[str, ...], base: str) -> dict[str, Any]:
    url = f"{base}/studies/{answer['StudyInstanceUID']}"
    if level is not Level.STUDY:
        url += f"/series/{answer['SeriesInstanceUID']}"
    if level is Level.IMAGE:
        url += f"/instances/{answer['SOPInstanceUID']}"
    values = {**answer, "RetrieveURL": url, "InstanceAvailability": "ONLINE"}
    return datasets.encode(values, (*returned, "RetrieveURL", "InstanceAvailability"))


def _warning(base: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the header of PS3.18 8.3.4 and 10.6.3, if there is anything to say."""
    said = ", ".join(f'299 {base}: "{text}"' for text in texts)
    return {"warning": said} if said else {}
