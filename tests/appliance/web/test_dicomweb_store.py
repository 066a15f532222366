"""A node's web process with a store of its own: what is stored over the web is filed and found."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, cast

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from sqlalchemy import select

from appliance import node
from appliance.auth import Right, tokens, users
from appliance.catalogue import DatabaseCatalogue
from appliance.db.base import now
from appliance.db.clinical import ClinicalLedgerEntry, QuarantineItem, Study
from appliance.db.engine import reading, writing
from appliance.filing import index_batch, open_inbox
from appliance.settings import Settings
from appliance.web.reads import STUDY_READ
from dicom_node import part10, sop_classes
from dicom_node.errors import HeaderError
from dicom_node.index import read_header
from dicom_node.query import Level, Query
from tests.appliance.web.panel_server import PanelServer, write_config
from tests.appliance.web.seed import PASSWORD
from tests.dicom_node.dicomweb.server import STOW, instance, message
from tests.dicom_node.orthanc import running_orthanc
from tests.further import cases
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.query import StoredInstance
    from tests.appliance.web.seed import Seed


PART10 = "application/dicom"


@dataclass
class Store:
    """A running web process, and a token that may store and search."""

    server: PanelServer
    zone: node.ClinicalZone
    token: str

    def post(self, content: bytes, path: str = "/studies", **headers: str) -> httpx.Response:
        given = {**STOW, "authorization": f"Bearer {self.token}", **headers}
        return httpx.post(f"{self.server.url}/dicom-web{path}", content=content, headers=given, timeout=60)

    def get(self, path: str, accept: str) -> httpx.Response:
        given = {"authorization": f"Bearer {self.token}", "accept": accept}
        return httpx.get(f"{self.server.url}/dicom-web{path}", headers=given, timeout=60)

    def client(self) -> DICOMwebClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return DICOMwebClient(f"{self.server.url}/dicom-web", headers=headers)

    def quarantined(self) -> list[str]:
        with reading(self.zone.engine) as session:
            return list(session.scalars(select(QuarantineItem.reason_code)))

    def file(self) -> None:
        """File what waits in the inbox, as the indexer does."""
        inbox = open_inbox(self.zone)
        while index_batch(self.zone, inbox).total:
            pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, node_template: Path) -> Iterator[Store]:
    settings = Settings(data_root=tmp_path_factory.mktemp("store") / "data")
    shutil.copytree(node_template, settings.data_root)
    node.create_node(settings)
    config = write_config(settings, settings.data_root.parent / "cloister.toml")
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        rights = [Right.VIEW_IDENTITY, Right.STORE_STUDIES]
        user = users.add_user(session, zone.ledger, name="pacs", password=PASSWORD, rights=rights)
        token = tokens.create(session, zone.ledger, user, name="RIS_GATEWAY", granted=rights, at=now())
        for right in Right:
            other = [right]
            users.add_user(session, zone.ledger, name=right.value, password=PASSWORD, rights=other)
    server = PanelServer(settings, cast("Seed", None), config)
    server.start()
    yield Store(server, zone, token)
    server.stop()
    zone.engine.dispose()
    shutil.rmtree(node.run_dir(settings), ignore_errors=True)


def test_dicomweb_client_stores_and_searches(store: Store, tmp_path: Path) -> None:
    client = store.client()
    names = ["Müller^Jörg", "Doe^Jane=多江^順"]
    for number, name in enumerate(names):
        ds = pydicom.dcmread(
            BytesIO(
                instance(
                    tmp_path, number, f"1.2.{number}", PatientName=name, SpecificCharacterSet="ISO_IR 192"
                )
            )
        )
        said = client.store_instances([ds], study_instance_uid=f"1.2.{number}")
        assert said.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
    store.file()
    (found,) = client.search_for_studies(
        search_filters={"PatientName": "müller*"}, fields=["StudyDescription"]
    )
    study = Dataset.from_json(found)
    assert str(study.PatientName) == names[0]
    assert study.SpecificCharacterSet == "ISO_IR 192"
    assert (study.StudyInstanceUID, study.NumberOfStudyRelatedInstances) == ("1.2.0", 1)
    assert study.InstanceAvailability == "ONLINE"
    assert "StudyDescription" in study
    (series,) = client.search_for_series("1.2.1")
    assert Dataset.from_json(series).Modality == "CT"
    (one,) = client.search_for_instances("1.2.1", "1.2.1.1")
    assert Dataset.from_json(one).Rows == 16
    assert len(client.search_for_instances()) == 2
    (other,) = client.search_for_studies(search_filters={"PatientName": "doe*"})
    assert Dataset.from_json(other).PatientName.ideographic == "多江^順"
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_dicomweb_client_retrieves_instances_frames_and_pictures(store: Store, tmp_path: Path) -> None:
    files = [instance(tmp_path, number, "1.6.1") for number in (1, 2)]
    assert store.post(message(files)).status_code == 200
    store.file()
    client = store.client()
    kept = (("application/dicom", "*"),)
    got = client.retrieve_study("1.6.1", media_types=kept)
    expected = {str(ds.SOPInstanceUID): ds for ds in (pydicom.dcmread(BytesIO(file)) for file in files)}
    assert {str(ds.SOPInstanceUID): ds for ds in got} == expected
    described = client.retrieve_study_metadata("1.6.1")
    assert [Dataset.from_json(one).PatientID for one in described] == ["4711", "4711"]
    for uid, ds in expected.items():
        one = client.retrieve_instance("1.6.1", "1.6.1.1", uid, media_types=kept)
        assert one == ds
        (frame,) = client.retrieve_instance_frames("1.6.1", "1.6.1.1", uid, frame_numbers=[1])
        assert frame == ds.PixelData
        picture = client.retrieve_instance_rendered("1.6.1", "1.6.1.1", uid, media_types=("image/png",))
        assert picture.startswith(b"\x89PNG")
        value = client.retrieve_bulkdata(
            f"{client.base_url}/studies/1.6.1/series/1.6.1.1/instances/{uid}/bulkdata/7FE00010"
        )
        assert value[0] == ds.PixelData


def test_who_read_a_study_is_in_the_ledger_once_in_a_while(store: Store, tmp_path: Path) -> None:
    assert store.post(message([instance(tmp_path, 1, "1.6.2")])).status_code == 200
    store.file()
    for path in ("", "/metadata", "/thumbnail"):
        assert store.get(f"/studies/1.6.2{path}", "*/*").status_code == 200
    with reading(store.zone.engine) as session:
        row_id = session.scalars(select(Study.id).where(Study.study_instance_uid == "1.6.2")).one()
        read = select(ClinicalLedgerEntry).where(
            ClinicalLedgerEntry.kind == STUDY_READ, ClinicalLedgerEntry.subject_id == row_id
        )
        assert json.loads(session.scalars(read).one().body)["by"] == "program"


def test_retrieving_needs_its_right(store: Store, tmp_path: Path) -> None:
    assert store.post(message([instance(tmp_path, 1, "1.6.3")])).status_code == 200
    store.file()
    paths = ["/studies/1.6.3", "/studies/1.6.3/metadata", "/studies/1.6.3/thumbnail"]
    for path in paths:
        url = f"{store.server.url}/dicom-web{path}"
        assert httpx.get(url).status_code == 401
        assert store.server.client("store_studies").get(url).status_code == 403
        assert store.server.client("view_identity").get(url).status_code == 200


@pytest.mark.orthanc
def test_orthanc_retrieves_a_study(store: Store, tmp_path: Path) -> None:
    files = [instance(tmp_path, number, "1.6.4") for number in (1, 2, 3)]
    assert store.post(message(files)).status_code == 200
    store.file()
    peer = {
        "Url": f"{store.server.url}/dicom-web/",
        "HttpHeaders": {"Authorization": f"Bearer {store.token}"},
    }
    plugins = {"Plugins": ["/usr/share/orthanc/plugins"], "DicomWeb": {"Servers": {"cloister": peer}}}
    with running_orthanc(tmp_path / "orthanc", **plugins) as orthanc:
        server = f"http://127.0.0.1:{orthanc.http_port}/dicom-web/servers/cloister"
        asked = {"Resources": [{"Study": "1.6.4"}], "Synchronous": True}
        done = httpx.post(f"{server}/retrieve", json=asked, timeout=60)
        assert done.status_code == 200, done.text
        held = [orthanc.file(one) for one in orthanc.instances()]
        assert sorted(content[part10.decode(content).data_offset :] for content in held) == sorted(
            content[part10.decode(content).data_offset :] for content in files
        )


def test_the_tokens_name_stands_where_an_ae_title_does(store: Store, tmp_path: Path) -> None:
    store.file()
    assert store.post(message([instance(tmp_path)])).status_code == 200
    (entry,) = open_inbox(store.zone).entries(10)
    assert (entry.calling_ae_title, entry.called_ae_title) == ("RIS_GATEWAY", "CLOISTER")
    assert entry.address == "127.0.0.1"


def test_storing_needs_its_own_right(store: Store, tmp_path: Path) -> None:
    content = message([instance(tmp_path)])
    url = f"{store.server.url}/dicom-web/studies"
    for user, status in (("view_identity", 403), ("store_studies", 200)):
        client = store.server.client(user)
        assert client.post(url, content=content, headers=STOW).status_code == status
    assert httpx.post(url, content=content, headers=STOW).status_code == 401
    assert store.server.client("store_studies").get(url).status_code == 403


def test_a_foreign_page_cannot_store_with_a_session(store: Store, tmp_path: Path) -> None:
    content = message([instance(tmp_path)])
    client = store.server.client("store_studies")
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = client.post("/dicom-web/studies", content=content, headers={**STOW, **headers})
        assert answer.status_code == 403
    own = {"origin": store.server.url, "sec-fetch-site": "same-origin"}
    assert client.post("/dicom-web/studies", content=content, headers={**STOW, **own}).status_code == 200


def test_answers_are_compressed_where_they_are_text(store: Store, tmp_path: Path) -> None:
    content = message([instance(tmp_path, number, f"1.3.{number}") for number in range(4)])
    assert store.post(content).status_code == 200
    store.file()
    headers = {"authorization": f"Bearer {store.token}", "accept-encoding": "gzip"}
    url = f"{store.server.url}/dicom-web/studies"
    answer = httpx.get(url, params={"StudyInstanceUID": "1.3.0,1.3.1,1.3.2,1.3.3"}, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()) == 4


@pytest.mark.orthanc
def test_orthanc_stores_and_searches_with_its_dicomweb_client(store: Store, tmp_path: Path) -> None:
    peer = {
        "Url": f"{store.server.url}/dicom-web/",
        "HttpHeaders": {"Authorization": f"Bearer {store.token}"},
        "ChunkedTransfers": True,
    }
    plugins = {"Plugins": ["/usr/share/orthanc/plugins"], "DicomWeb": {"Servers": {"cloister": peer}}}
    files = [instance(tmp_path, number, "1.5.1") for number in (1, 2, 3)]
    with running_orthanc(tmp_path / "orthanc", **plugins) as orthanc:
        base = f"http://127.0.0.1:{orthanc.http_port}"
        for file in files:
            httpx.post(f"{base}/instances", content=file, timeout=30).raise_for_status()
        server = f"{base}/dicom-web/servers/cloister"
        resources = {"Resources": orthanc.instances(), "Synchronous": True}
        done = httpx.post(f"{server}/stow", json=resources, timeout=60)
        assert done.status_code == 200, done.text
        store.file()
        found = DatabaseCatalogue(store.zone).instances("1.5.1")
        content = {one.sop_instance_uid: one.path.read_bytes() for one in found}
        assert len(content) == 3
        for number, file in enumerate(files, 1):
            stored = content[f"1.5.1.1.{number}"]
            assert stored[part10.decode(stored).data_offset :] == file[part10.decode(file).data_offset :]
        asked = {"Uri": "/studies", "Arguments": {"StudyInstanceUID": "1.5.1"}}
        answer = httpx.post(f"{server}/qido", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        (study,) = answer.json()
        assert study["00081190"]["Value"] == f"{store.server.url}/dicom-web/studies/1.5.1"


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", cases(["one of each kind", "all"], ["one of each kind"]))
def test_every_real_file_is_stored_and_filed_with_its_bytes(store: Store, which: str) -> None:
    paths = sorted(path for path in (shared_data_dir() / "dicom").rglob("*") if path.is_file())
    paths = paths if which == "all" else one_of_each_kind(paths)
    store.file()
    before = len(store.quarantined())
    sent: dict[str, list[tuple[str, bytes]]] = {}
    headers = {**STOW, "authorization": f"Bearer {store.token}"}
    with httpx.Client(base_url=store.server.url, headers=headers, timeout=60) as client:
        for path in paths:
            content = path.read_bytes()
            answer = client.post("/dicom-web/studies", content=message([content]))
            if answer.status_code == 200:
                header = read_header(path)
                versions = sent.setdefault(header.sop_instance_uid, [])
                version = header.transfer_syntax_uid, content[part10.decode(content).data_offset :]
                versions.extend([version] if version not in versions else [])
            else:
                assert (answer.status_code, why_not(path)) != (409, ""), path.name
    store.file()
    assert len(sent) > (500 if which == "all" else 60)
    known = {"authorization": f"Bearer {store.token}"}
    reader = httpx.Client(base_url=f"{store.server.url}/dicom-web", headers=known, timeout=60)
    for uid, versions in sent.items():
        (row,) = DatabaseCatalogue(store.zone).find(Query(Level.IMAGE, {"SOPInstanceUID": uid}))
        keys = (row[key] for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
        (stored,) = DatabaseCatalogue(store.zone).instances(*keys)
        content = stored.path.read_bytes()
        assert (stored.transfer_syntax_uid, content[part10.decode(content).data_offset :]) == versions[0]
        answer = reader.get(place(stored), headers={"accept": f"{PART10}; transfer-syntax=*"})
        assert answer.status_code == 200, answer.text
        assert answer.content[part10.decode(answer.content).data_offset :] == versions[0][1]
        described = reader.get(f"{place(stored)}/metadata", headers={"accept": "application/dicom+json"})
        assert [one["00080018"]["Value"] for one in described.json()] == [[uid]]
    reader.close()
    assert store.quarantined()[before:] == ["duplicate_other_bytes"] * sum(
        len(versions) - 1 for versions in sent.values()
    )


def place(one: StoredInstance) -> str:
    series = f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
    return f"{series}/instances/{one.sop_instance_uid}"


def one_of_each_kind(paths: list[Path]) -> list[Path]:
    """Return a file of each SOP class and transfer syntax, and one for each reason not to be stored."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        reason = why_not(path)
        header = None if reason else read_header(path)
        kind = (reason,) if header is None else (header.sop_class_uid, header.transfer_syntax_uid)
        found.setdefault(kind, path)
    return list(found.values())


def why_not(path: Path) -> str:
    """Say why a file is no instance that can be stored; nothing when it is one."""
    try:
        header = read_header(path)
    except HeaderError as error:
        return error.code
    return "" if sop_classes.is_storage(header.sop_class_uid) else "no_storage"
