"""/metrics of the running web process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from appliance import figures
from appliance.web.timing import service_of
from tests.appliance.web.panel_server import wait_for

if TYPE_CHECKING:
    from tests.appliance.web.panel_server import PanelServer

RULES = Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "cloister.rules.yml"


def test_requests_of_dicomweb_are_timed_by_service_and_status(panel: PanelServer) -> None:
    client = panel.client("ada")
    assert client.get("/dicom-web/studies").status_code == 200
    assert client.get("/dicom-web/studies", params={"limit": "x"}).status_code == 400
    text = wait_for(
        lambda: (found := client.get("/metrics").text) and 'service="qido",status="4xx"' in found and found,
        10,
        "the requests are counted",
    )
    found = re.search(r'cloister_dicomweb_seconds_count\{service="qido",status="2xx"\} (\d+)', text)
    assert found is not None
    assert int(found[1]) >= 1


def test_a_path_tells_the_service() -> None:
    assert service_of("POST", "/dicom-web/studies") == "stow"
    assert service_of("GET", "/dicom-web/studies/1.2/series") == "qido"
    assert service_of("GET", "/dicom-web/studies/1.2/series/1.3/instances/") == "qido"
    for path in ("1.2", "1.2/metadata", "1.2/series/1.3/instances/1.4/frames/1", "1.2/rendered"):
        assert service_of("GET", f"/dicom-web/studies/{path}") == "wado"


def test_every_figure_that_an_alert_rule_names_is_there(panel: PanelServer) -> None:
    families = {
        family.name for family in text_string_to_metric_families(panel.client("ada").get("/metrics").text)
    }
    known = families | {f"{name}_total" for name in families} | {f"{name}_bucket" for name in families}
    named = set(re.findall(r"\bcloister_\w+", "\n".join(_expressions())))
    assert named
    assert named <= known
    assert {figure.name.removesuffix("_total") for figure in figures.FIGURES} <= families


def _expressions() -> list[str]:
    lines = RULES.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip().startswith("expr:")]
