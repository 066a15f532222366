"""The viewer in a browser: a person opens a study from the panel and sees its pixels."""

from __future__ import annotations

import base64
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import cli, node, viewer
from appliance.auth import Right, tokens, users
from appliance.db.base import now
from appliance.db.clinical import ClinicalLedgerEntry, Study
from appliance.db.engine import reading, writing
from appliance.filing import index_batch, open_inbox
from appliance.settings import Settings
from appliance.web.reads import STUDY_READ
from tests.appliance.web.panel_server import PanelServer, wait_for, write_config
from tests.appliance.web.seed import PASSWORD
from tests.dicom_node.dicomweb.server import STOW, message
from tests.further import cases
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

    from tests.appliance.web.seed import Seed

CHROMIUM = Path("/usr/bin/chromium")
CT = "dicom/pydicom/src/pydicom/data/test_files/dicomdirtests/98892001/CT5N"
COMPRESSED = {
    "JPEG-LS": "dicom/dicom-test-files/data/WG04/JLSL/CT2_JLSL",
    "JPEG 2000": "dicom/dicom-test-files/data/WG04/J2KR/CT2_J2KR",
    "JPEG lossless": "dicom/dicom-test-files/data/WG04/JPLL/CT2_JPLL",
    "RLE": "dicom/dicom-test-files/data/WG04/RLE/CT2_RLE",
    "HTJ2K without a modality": "dicom/pydicom-data/data_store/data/HTJ2KLossless_08_RGB.dcm",
}
LOAD_S = 60.0  # of software rendering on a busy machine
PERSON = "radiologist"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@dataclass
class Hospital:
    """A running web process on a node with the viewer."""

    server: PanelServer
    zone: node.ClinicalZone
    token: str

    def store(self, *paths: Path, study: str = "") -> str:
        """Store files over the web, as one study of its own where one is named; return the study's row id."""
        contents = [_as_study(path, study) if study else path.read_bytes() for path in paths]
        answer = httpx.post(
            f"{self.server.url}/dicom-web/studies",
            content=message(contents),
            headers={**STOW, "authorization": f"Bearer {self.token}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        while index_batch(self.zone, open_inbox(self.zone)).total:
            pass
        uid = str(pydicom.dcmread(BytesIO(contents[0]), stop_before_pixels=True).StudyInstanceUID)
        with reading(self.zone.engine) as session:
            return session.scalars(select(Study.id).where(Study.study_instance_uid == uid)).one()


def _as_study(path: Path, uid: str) -> bytes:
    ds = pydicom.dcmread(path)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, f"{uid}.1", f"{uid}.1.1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing")
        pytest.skip("Chromium is missing")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The viewer's package: a file that is here already, or fetched with npm."""
    given = os.environ.get("CLOISTER_VIEWER_PACKAGE")
    if given:
        return Path(given)
    try:
        return viewer.download(viewer.OHIF, tmp_path_factory.mktemp("package"))
    except viewer.ViewerError as error:
        pytest.skip(f"no package of the viewer: {error}")


@pytest.fixture(scope="module")
def hospital(
    tmp_path_factory: pytest.TempPathFactory, node_template: Path, package: Path
) -> Iterator[Hospital]:
    settings = Settings(data_root=tmp_path_factory.mktemp("viewer") / "data")
    shutil.copytree(node_template, settings.data_root)
    node.create_node(settings)
    config = write_config(settings, settings.data_root.parent / "cloister.toml")
    words = ["viewer", "install", "--from", str(package), "--config", str(config)]
    done = CliRunner().invoke(cli.build(), words)
    assert done.exit_code == 0, done.output
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        person = [Right.VIEW, Right.VIEW_IDENTITY]
        users.add_user(session, zone.ledger, name=PERSON, password=PASSWORD, rights=person)
        store = [Right.STORE_STUDIES]
        pacs = users.add_user(session, zone.ledger, name="pacs", password=PASSWORD, rights=store)
        token = tokens.create(session, zone.ledger, pacs, name="PACS", granted=store, at=now())
    server = PanelServer(settings, cast("Seed", None), config)
    server.start()
    yield Hospital(server, zone, token)
    server.stop()
    zone.engine.dispose()
    shutil.rmtree(node.run_dir(settings), ignore_errors=True)


class Watched:
    """A browser window that notes what must not happen."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: Any) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self.complaints.append(message.text)

    def _request(self, request: Any) -> None:
        own = urlsplit(request.url).scheme in {"data", "blob"} or request.url.startswith(self.url)
        if not own:
            self.complaints.append(f"left the machine: {request.url}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def keep(self, name: str) -> None:
        """Keep a picture of the window where a person asks for it."""
        if "CLOISTER_SCREENSHOTS" in os.environ:
            self.page.screenshot(path=Path(os.environ["CLOISTER_SCREENSHOTS"]) / name)

    def sign_in(self) -> None:
        self.page.goto(f"{self.url}/sign-in")
        self.page.get_by_label("Name").fill(PERSON)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", level=1, name="Home").wait_for()

    def open_study(self, study_id: str) -> Locator:
        """Go from the study's page to the viewer; return the picture once it is one."""
        self.page.goto(f"{self.url}/studies/{study_id}")
        link = self.page.get_by_role("link", name="Open in viewer")
        link.wait_for()
        self.keep("study.png")
        link.click()
        canvas = self.page.locator("canvas.cornerstone-canvas").first
        canvas.wait_for(timeout=LOAD_S * 1000)
        wait_for(lambda: grey_levels(canvas) > 60, LOAD_S, "a picture in the viewer")
        return canvas


def grey_levels(canvas: Locator) -> int:
    """Count the grey levels of what is drawn on a canvas itself, whatever lies over it."""
    address = str(canvas.evaluate("canvas => canvas.toDataURL('image/png')"))
    content = base64.b64decode(address.partition(",")[2])
    return len(np.unique(np.asarray(Image.open(BytesIO(content)).convert("L"))))


@contextmanager
def watched(browser: Browser, hospital: Hospital) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LOAD_S * 1000)
    window = Watched(context.new_page(), hospital.server.url)
    yield window
    context.close()
    assert window.complaints == []


def test_a_person_opens_a_series_and_sees_its_pixels(browser: Browser, hospital: Hospital) -> None:
    study_id = hospital.store(*sorted((shared_data_dir() / CT).iterdir()))
    with watched(browser, hospital) as window:
        window.sign_in()
        window.open_study(study_id)
        window.keep("viewer.png")
    with reading(hospital.zone.engine) as session:
        entries = session.scalars(
            select(ClinicalLedgerEntry.subject_id).where(ClinicalLedgerEntry.kind == STUDY_READ)
        ).all()
    assert study_id in entries


def test_it_lists_studies_and_its_requests_reach_nothing_but_dicomweb(
    browser: Browser, hospital: Hospital
) -> None:
    hospital.store(shared_data_dir() / COMPRESSED["RLE"], study="1.2.840.9")
    hospital.store(shared_data_dir() / COMPRESSED["HTJ2K without a modality"], study="1.2.840.10")
    with watched(browser, hospital) as window:
        window.sign_in()
        window.page.goto(f"{hospital.server.url}/viewer")
        window.page.get_by_text("CompressedSamples").first.wait_for()
        assert window.complaints == []
        asked = "path => fetch(path).then(() => 'answered', () => 'refused')"
        for path in ("/api/v1/home", "https://elsewhere.example/"):
            assert window.page.evaluate(asked, path) == "refused"
        assert window.page.evaluate(asked, "/dicom-web/studies?limit=1") == "answered"
        assert all("Content Security Policy" in text for text in window.complaints)
        window.complaints.clear()


@pytest.mark.parametrize("kind", cases(COMPRESSED, ["HTJ2K without a modality"]))
def test_what_is_stored_compressed_is_seen_too(browser: Browser, hospital: Hospital, kind: str) -> None:
    uid = f"1.2.840.{list(COMPRESSED).index(kind) + 1}"
    study_id = hospital.store(shared_data_dir() / COMPRESSED[kind], study=uid)
    with watched(browser, hospital) as window:
        window.sign_in()
        window.open_study(study_id)
