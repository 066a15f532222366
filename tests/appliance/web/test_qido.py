"""QIDO-RS over a catalogue in a database, served as a service of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from pydicom.datadict import tag_for_keyword
from starlette.responses import Response, StreamingResponse

from appliance import node
from appliance.catalogue import DatabaseCatalogue
from appliance.filing import index_batch, open_inbox
from appliance.settings import Settings
from appliance.web.app import zipped
from dicom_node.dicomweb import qido
from dicom_node.dicomweb.frame import Frame
from dicom_node.inbox import Announcement
from dicom_node.ports import Caller
from tests.dicom_node.dicomweb.server import served
from tests.dicom_node.support import ct, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
MAX_RESULTS = 5
JANE = {
    "PatientID": "P1",
    "PatientName": "Doe^Jane=多江^順",
    "StudyInstanceUID": "1.2.1",
    "StudyDate": "20240105",
}
LATER = {**JANE, "StudyInstanceUID": "1.2.2", "StudyDate": "20240301", "StudyTime": "170000"}
ROE = {"PatientID": "P2", "PatientName": "Roe^Max", "StudyInstanceUID": "1.2.3", "StudyDate": "20230101"}
SPECIFIC = {"SpecificCharacterSet": "ISO_IR 192"}
STORED: list[dict[str, Any]] = [
    {**SPECIFIC, **JANE, "SeriesInstanceUID": "1.2.1.1", "Modality": "CT", "InstanceNumber": "1"},
    {**SPECIFIC, **JANE, "SeriesInstanceUID": "1.2.1.1", "Modality": "CT", "InstanceNumber": "2"},
    {**SPECIFIC, **JANE, "SeriesInstanceUID": "1.2.1.2", "Modality": "SR", "SeriesNumber": "7"},
    {
        **SPECIFIC,
        **LATER,
        "SeriesInstanceUID": "1.2.2.1",
        "Modality": "MR",
        "StudyDescription": "Knee \\ left",
    },
    {**ROE, "SeriesInstanceUID": "1.2.3.1", "Modality": "CR", "BodyPartExamined": "CHEST"},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_root=tmp_path_factory.mktemp("qido") / "data")
    node.create_node(settings, "clinical")
    zone = node.open_clinical(settings)
    inbox = open_inbox(zone)
    for number, values in enumerate(STORED):
        uid = f"{values['SeriesInstanceUID']}.{number}"
        absent = dict.fromkeys(("StudyDescription", "BodyPartExamined"))
        data_set = encoded(ct({"SOPInstanceUID": uid, **absent, **values}))
        inbox.commit([data_set], Caller("CT1", "CLOISTER", "127.0.0.1"), Announcement(CT, uid, EXPLICIT))
    index_batch(zone, inbox)
    failures: list[Exception] = []
    app = FastAPI()
    frame = Frame(DatabaseCatalogue(zone), lambda _: "https://node/dicom-web", failures.append)
    app.include_router(qido.router(frame, max_results=MAX_RESULTS))
    with served(app) as address:
        yield address
    assert failures == []
    zone.engine.dispose()


def get(url: str, path: str, *parameters: tuple[str, str], **headers: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", params=list(parameters), headers=headers, timeout=30)


def element(answer: dict[str, Any], keyword: str) -> Any:
    found = answer[f"{tag_for_keyword(keyword):08X}"]
    return found.get("Value")


def studies(url: str, *parameters: tuple[str, str]) -> list[str]:
    answer = get(url, "/studies", *parameters)
    assert answer.status_code == 200, answer.text
    return sorted(element(one, "StudyInstanceUID")[0] for one in answer.json())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PatientID", "P1", ["1.2.1", "1.2.2"]),
        ("00100020", "P2", ["1.2.3"]),
        ("patientid", "P2", None),
        ("PatientName", "doe*", ["1.2.1", "1.2.2"]),
        ("PatientName", "R?e^Max", ["1.2.3"]),
        ("StudyDate", "20240101-20240131", ["1.2.1"]),
        ("StudyDate", "20240301-", ["1.2.2"]),
        ("StudyInstanceUID", "1.2.1,1.2.3", ["1.2.1", "1.2.3"]),
        ("0020000d", "1.2.1\\1.2.3", ["1.2.1", "1.2.3"]),
        ("ModalitiesInStudy", "SR", ["1.2.1"]),
        ("ModalitiesInStudy", "MR,CR", ["1.2.2", "1.2.3"]),
        ("PatientID", "", ["1.2.1", "1.2.2", "1.2.3"]),
    ],
)
def test_keys_match_by_keyword_and_by_tag(url: str, key: str, value: str, expected: list[str] | None) -> None:
    if expected is None:  # keywords have their letters as the dictionary has them
        answer = get(url, "/studies", (key, value))
        assert len(answer.json()) == 3
        assert "patientid is not matched" in answer.headers["warning"]
    else:
        assert studies(url, (key, value)) == expected


def test_an_answer_holds_what_the_standard_demands_in_its_form(url: str) -> None:
    answer = get(url, "/studies", ("StudyInstanceUID", "1.2.1"))
    assert answer.headers["content-type"] == "application/dicom+json"
    assert "warning" not in answer.headers
    (study,) = answer.json()
    assert list(study) == sorted(study)
    assert study["00100010"] == {
        "vr": "PN",
        "Value": [{"Alphabetic": "Doe^Jane", "Ideographic": "多江^順"}],
    }
    assert study["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert study["00080056"] == {"vr": "CS", "Value": ["ONLINE"]}
    assert study["00080061"] == {"vr": "CS", "Value": ["CT", "SR"]}
    assert study["00201206"] == {"vr": "IS", "Value": [2]}
    assert study["00201208"] == {"vr": "IS", "Value": [3]}
    assert study["00081190"] == {"vr": "UR", "Value": ["https://node/dicom-web/studies/1.2.1"]}
    assert {
        "00080020",
        "00080030",
        "00080050",
        "00080090",
        "00100020",
        "00100030",
        "00100040",
        "00200010",
    } <= set(study)
    assert "00081030" not in study


def test_more_is_returned_where_it_is_asked_for(url: str) -> None:
    match = ("StudyInstanceUID", "1.2.2")
    for parameters in (
        [("includefield", "StudyDescription")],
        [("includefield", "00100010,00081030")],
        [("includefield", "all")],
        [("includefield", "StudyTime"), ("includefield", "StudyDescription")],
        [("StudyDescription", "knee*")],
    ):
        (study,) = get(url, "/studies", match, *parameters).json()
        assert element(study, "StudyDescription"), parameters
    (study,) = get(url, "/studies", match, ("includefield", "00400275.00400007,PixelData,00091001")).json()
    assert "00091001" not in study


def test_levels_below_say_what_the_path_does_not(url: str) -> None:
    series = get(url, "/studies/1.2.1/series").json()
    assert sorted(element(one, "Modality")[0] for one in series) == ["CT", "SR"]
    assert all("00100010" not in one for one in series)
    (one,) = get(url, "/series", ("Modality", "MR")).json()
    assert element(one, "PatientID") == ["P1"]
    assert element(one, "RetrieveURL") == ["https://node/dicom-web/studies/1.2.2/series/1.2.2.1"]
    instances = get(url, "/studies/1.2.1/series/1.2.1.1/instances").json()
    assert [element(one, "InstanceNumber") for one in instances] == [[1], [2]]
    assert instances[0]["00280010"] == {"vr": "US", "Value": [16]}
    assert element(instances[0], "SOPClassUID") == [CT]
    assert "00080060" not in instances[0]
    assert len(get(url, "/studies/1.2.1/instances").json()) == 3
    (one,) = get(url, "/instances", ("SeriesNumber", "7")).json()
    assert (element(one, "Modality"), element(one, "PatientID")) == (["SR"], ["P1"])
    assert element(one, "RetrieveURL")[0].endswith("/studies/1.2.1/series/1.2.1.2/instances/1.2.1.2.2")


def test_nothing_found_is_an_empty_list(url: str) -> None:
    for path in ("/studies/1.9/series", "/studies/1.2.1/series/1.9/instances", "/series"):
        answer = get(url, path, ("PatientName", "Roe*"), ("Modality", "XA"))
        assert (answer.status_code, answer.json()) == (200, [])


def test_pages_are_bounded_and_say_when_there_is_more(url: str) -> None:
    whole = get(url, "/instances", ("limit", "100"))
    assert len(whole.json()) == 5
    assert "warning" not in whole.headers
    pages = [get(url, "/instances", ("limit", "2"), ("offset", str(offset))) for offset in (0, 2, 4, 6)]
    assert [one for page in pages for one in page.json()] == whole.json()
    assert ["warning" in page.headers for page in pages] == [True, True, False, False]
    assert pages[0].headers["warning"].startswith('299 https://node/dicom-web: "There are additional')
    assert get(url, "/instances", ("limit", "0")).json() == []


def test_what_is_not_supported_is_left_out_with_a_warning(url: str) -> None:
    answer = get(url, "/studies", ("fuzzymatching", "true"), ("OtherPatientIDs", "x"), ("00091001", "y"))
    assert len(answer.json()) == 3
    for said in ("fuzzymatching", "OtherPatientIDs is not matched", "00091001 is not matched"):
        assert said in answer.headers["warning"]
    assert "warning" not in get(url, "/studies", ("fuzzymatching", "false")).headers
    many = [(f"Nothing{number}", "x") for number in range(150)]
    assert len(get(url, "/studies", *many).headers["warning"]) < 4000


@pytest.mark.parametrize(
    "parameters",
    [
        [("StudyDate", "January")],
        [("StudyTime", "25")],
        [("limit", "-1")],
        [("limit", "ten")],
        [("limit", "٣")],
        [("offset", "9" * 20)],
        [("fuzzymatching", "perhaps")],
        [("PatientID", "a"), ("PatientID", "b")],
        [("PatientID", "a"), ("00100020", "b")],
        [("PatientID", "x" * 500)],
        [("PatientID", "a\0b")],
        [("PatientName", "*a" * 20)],
        [("0010-0020", "x")],
        [("<script>", "x")],
        [("includefield", "a b")],
        [(f"Nothing{number}", "x") for number in range(300)],
    ],
)
def test_what_cannot_be_meant_is_a_bad_request(url: str, parameters: list[tuple[str, str]]) -> None:
    answer = get(url, "/studies", *parameters)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(len(value) < 3 or value not in answer.text for _, value in parameters)


def test_a_path_that_names_no_uid_is_a_bad_request(url: str) -> None:
    for path in ("/studies/x/series", "/studies/1..2/instances", "/studies/1.2/series/01.2/instances"):
        assert get(url, path).status_code == 400
    assert get(url, "/studies/1.2.1/series", ("StudyInstanceUID", "1.2.2")).status_code == 400


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("application/dicom+json", "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("multipart/related; type=application/dicom+xml", None),
        ("text/html, application/dicom+json;q=0", None),
    ],
)
def test_only_json_is_spoken(url: str, accept: str, kind: str | None) -> None:
    answer = get(url, "/studies", accept=accept)
    assert answer.status_code == (406 if kind is None else 200)
    if kind is not None:
        assert answer.headers["content-type"] == kind
    by_parameter = get(url, "/studies", ("accept", "application/json"), accept="text/html")
    assert by_parameter.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("kind", "compressed"),
    [
        ("application/dicom+json", True),
        ('multipart/related; type="application/dicom"; boundary=b', False),
        ("application/dicom", False),
        ("application/octet-stream", False),
        ("image/jp2", False),
    ],
)
def test_only_texts_are_compressed_on_their_way_out(kind: str, compressed: bool) -> None:
    app = FastAPI()

    @app.get("/")
    def answer() -> Response:
        return StreamingResponse(iter([b"x" * 100_000] * 3), media_type=kind)

    with served(zipped(app)) as address:
        found = httpx.get(address, headers={"accept-encoding": "gzip"})
    assert ("content-encoding" in found.headers) is compressed
    assert found.content == b"x" * 300_000
