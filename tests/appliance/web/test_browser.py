"""A person at a browser: signs in, walks all pages, sees changes without reloading, decides something."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from appliance.auth import users
from appliance.db.clinical import QuarantineItem, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.web.panel.pages import PAGES
from appliance.web.panel.shell import MENU
from tests.appliance.web.seed import PASSWORD
from tests.dicom_node.support import ct
from tests.further import FURTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run Chromium."""
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing")
        pytest.skip("Chromium is missing")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Watched:
    """A browser window that notes what must not happen."""

    def __init__(self, context: BrowserContext, panel: PanelServer) -> None:
        self.page: Page = context.new_page()
        self.panel = panel
        self.complaints: list[str] = []
        self.loads = 0
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._request)
        self.page.on("load", self._loaded)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if urlsplit(request.url).scheme != "data" and not request.url.startswith(self.panel.url):
            self.complaints.append(f"left the machine: {request.url}")

    def _loaded(self, _: Any) -> None:
        self.loads += 1

    def sign_in(self, user: str) -> None:
        self.page.goto(f"{self.panel.url}/sign-in")
        self.page.get_by_label("Name").fill(user)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", level=1, name="Home").wait_for()

    def open(self, path: str) -> None:
        self.page.goto(f"{self.panel.url}{path}")
        self.page.locator(".panel h1").wait_for()


@pytest.fixture
def window(browser: Browser, panel: PanelServer) -> Iterator[Callable[..., Watched]]:
    """Open watched windows; at the end there must be no complaint."""
    opened: list[tuple[BrowserContext, Watched]] = []

    def make(width: int = 1440, height: int = 900, scheme: str = "light") -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        context.set_default_timeout(20_000)
        watched = Watched(context, panel)
        opened.append((context, watched))
        return watched

    yield make
    for context, watched in opened:
        context.close()
        assert watched.complaints == []


def _paths(panel: PanelServer) -> list[str]:
    ids = {
        "study_id": panel.seed.studies[4],
        "item_id": panel.seed.quarantine,
        "result_id": panel.seed.pictures[0],
        "model_id": panel.seed.models["active"],
        "peer_id": panel.seed.destination,
        "fetch_id": panel.seed.fetch,
        "instance_id": panel.seed.instance,
        "run_id": panel.seed.run_id,
        "receipt_id": panel.seed.receipt,
    }
    return [page.path.format(**ids) for page in PAGES]


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [pytest.param(1440, 900, "light", marks=FURTHER), (390, 844, "dark")]
)
def test_all_pages_open_fit_and_load_nothing_from_elsewhere(
    window: Callable[..., Watched], panel: PanelServer, width: int, height: int, scheme: str
) -> None:
    watched = window(width, height, scheme)
    watched.sign_in("ada")
    for path in _paths(panel):
        watched.open(path)
        wider = watched.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0, path
        assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
        unnamed = watched.page.locator("button:visible, a:visible").evaluate_all(
            "all => all.filter(e => !(e.textContent.trim() || e.ariaLabel)).length"
        )
        assert unnamed == 0, path


def test_the_menu_leads_everywhere(window: Callable[..., Watched]) -> None:
    watched = window()
    watched.sign_in("ada")
    for _, entries in MENU:
        for entry in entries:
            watched.page.get_by_role("navigation", name="Pages").get_by_role("link", name=entry.title).click()
            watched.page.wait_for_url(f"**{entry.path}")
            watched.page.locator(f'nav a[aria-current="page"]:has-text("{entry.title}")').wait_for()


def test_a_study_that_arrives_shows_without_reload(window: Callable[..., Watched], desk: Desk) -> None:
    watched = window()
    watched.sign_in("ada")
    watched.open("/studies")
    before = watched.loads
    with writing(desk.zone.engine) as session:
        session.add(Study(study_instance_uid="1.2.3.4.5", patient_name="Zander^Live", modalities="DX"))
    watched.page.get_by_role("link", name="Zander, Live").wait_for(timeout=10_000)
    assert watched.loads == before


def test_a_hostile_description_is_shown_as_text(window: Callable[..., Watched], desk: Desk) -> None:
    hostile = "<img src=x onerror=alert(1)>`${1}`{{2}}"
    with writing(desk.zone.engine) as session:
        session.add(Study(study_instance_uid="1.2.3.4.6", patient_name="Hostile", study_description=hostile))
    watched = window()
    watched.sign_in("ada")
    watched.open("/studies")
    watched.page.get_by_text(hostile).wait_for()
    assert watched.page.locator("img").count() == 0


def test_a_person_decides_after_being_asked(window: Callable[..., Watched], desk: Desk) -> None:
    with writing(desk.zone.engine) as session:
        item = QuarantineItem(
            stage="index", reason_code="for_the_browser", reason="a test", dedupe_key="browser"
        )
        session.add(item)
    watched = window()
    watched.sign_in("review_quarantine")
    watched.open("/quarantine?reason=for_the_browser")
    watched.page.get_by_role("button", name="Mark reviewed: for_the_browser").click()
    dialog = watched.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    watched.page.get_by_role("button", name="Mark reviewed: for_the_browser").click()
    dialog.get_by_role("button", name="Mark reviewed").click()
    watched.page.get_by_text("Marked as reviewed.").wait_for()
    watched.page.get_by_text("No item matches.").wait_for()
    with reading(desk.zone.engine) as session:
        assert session.get_one(QuarantineItem, item.id).resolved_at is not None


def test_a_peer_is_added_in_a_dialog_with_the_keyboard_alone(
    window: Callable[..., Watched], desk: Desk
) -> None:
    watched = window()
    watched.sign_in("manage_peers")
    watched.open("/peers")
    watched.page.get_by_role("button", name="Add peer").first.focus()
    watched.page.keyboard.press("Enter")
    for text in ("Keyboard PACS", "KEYPACS", "10.1.1.1"):
        watched.page.keyboard.type(text)
        watched.page.keyboard.press("Tab")
    watched.page.keyboard.press("Enter")
    watched.page.get_by_role("cell", name="Keyboard PACS", exact=True).wait_for()
    assert not watched.page.locator("dialog[open]").count()
    with reading(desk.zone.engine) as session:
        assert {peer.ae_title for peer in session.query(Peer)} >= {"KEYPACS"}


def test_a_form_changes_the_user_that_it_was_opened_for(window: Callable[..., Watched], desk: Desk) -> None:
    watched = window()
    watched.sign_in("ada")
    watched.open("/users")
    row = watched.page.get_by_role("row").filter(has_text="nobody")
    row.get_by_role("button", name="Rights").click()
    dialog = watched.page.get_by_role("dialog")
    dialog.get_by_label("See states, counts and reasons").check()
    dialog.get_by_label("Retry jobs").check()
    dialog.get_by_role("button", name="Save").click()
    watched.page.get_by_text("Rights changed.").wait_for()
    with reading(desk.zone.engine) as session:
        assert users.find_user(session, "nobody").rights == ["retry_jobs", "view"]
    with writing(desk.zone.engine) as session:
        users.set_rights(session, desk.zone.ledger, users.find_user(session, "nobody"), rights=[])


def test_a_refused_action_says_why_and_keeps_the_form(window: Callable[..., Watched]) -> None:
    watched = window()
    watched.sign_in("manage_peers")
    watched.open("/peers")
    watched.page.get_by_role("button", name="Add peer").first.click()
    dialog = watched.page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Bad\\name")
    dialog.get_by_label("AE title").fill("X")
    dialog.get_by_label("Address").fill("10.0.0.1")
    dialog.get_by_role("button", name="Add peer").click()
    watched.page.get_by_text("Not added: name").wait_for()
    assert dialog.get_by_label("Address").input_value() == "10.0.0.1"


def test_signing_out_elsewhere_brings_this_page_to_the_sign_in(
    window: Callable[..., Watched], panel: PanelServer
) -> None:
    watched = window()
    watched.sign_in("viewer")
    cookie = next(one for one in watched.page.context.cookies() if one["name"] == "cloister")
    other = panel.client()
    other.cookies.set("cloister", cookie["value"])
    assert other.post("/sign-out", headers={"origin": panel.url}).status_code == 303
    watched.page.wait_for_url("**/sign-in?ended=1")
    watched.page.get_by_text("Your session has ended").wait_for()
    refused = [one for one in watched.complaints if "401" in one or "WebSocket" in one]
    for one in refused:  # the browser itself reports that the ended session is refused
        watched.complaints.remove(one)


def test_the_look_is_kept(window: Callable[..., Watched]) -> None:
    watched = window()
    watched.sign_in("viewer")
    watched.page.get_by_role("button", name="Switch between light and dark").click()
    watched.open("/jobs")
    assert watched.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_rule_is_tried_unsaved_and_on_a_file_without_leaving_the_page(
    window: Callable[..., Watched], panel: PanelServer, tmp_path: Path
) -> None:
    watched = window()
    watched.sign_in("ada")
    watched.open("/rules")
    loads = watched.loads
    watched.page.get_by_role("button", name="Edit").first.click()
    dialog = watched.page.locator("dialog[open]")
    dialog.get_by_label("Condition").fill('{"attribute": "Modality", "in": ["MR"]}')
    dialog.get_by_label("Try on study").fill(panel.seed.studies[4][:8])
    dialog.get_by_role("button", name="Try").click()
    watched.page.get_by_text("this rule: did not match because Modality is none of MR").wait_for()
    assert dialog.is_visible()
    dialog.get_by_role("button", name="Cancel").click()
    path = tmp_path / "ct.dcm"
    ds = ct()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    watched.page.locator("input[type=file]").set_input_files(path)
    watched.page.locator("form[data-upload] button").click()
    watched.page.locator("output", has_text="everything: matched because").wait_for()
    assert watched.loads == loads
