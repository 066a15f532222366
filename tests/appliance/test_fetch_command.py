from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from appliance.cli import build
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.db.peers import Fetch
from appliance.node import ClinicalZone, open_clinical
from tests.appliance.fetch_node import add_archive, finish, indexing, study_files
from tests.appliance.test_fetching import answers, gives
from tests.dicom_node.archives import odd_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from appliance.settings import Settings


@pytest.fixture
def run(node_settings: Settings, tmp_path: Path) -> Callable[..., Result]:
    config = tmp_path / "cloister.toml"
    config.write_text(f'data_root = "{node_settings.data_root}"\n')

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(build(), [*arguments, "--config", str(config)])

    return call


@pytest.fixture
def zone(node_settings: Settings, tmp_path: Path) -> Iterator[ClinicalZone]:
    zone = open_clinical(node_settings)
    served = {uid: study_files(tmp_path, uid, 2, PatientID="P1") for uid in ("1.2.1", "1.2.2")}
    with odd_archive(find=answers(("1.2.1", 2), ("1.2.2", 2)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        yield zone
    zone.engine.dispose()


def test_an_archive_is_asked_at_each_level(zone: ClinicalZone, run: Callable[..., Result]) -> None:
    found = json.loads(run("query", "archive", "PatientID=P1", "--json").stdout)
    assert [one["StudyInstanceUID"] for one in found["found"]] == ["1.2.1", "1.2.2"]
    assert found["complete"]
    keys = ("StudyInstanceUID=1.2.1", "SeriesInstanceUID=1.2.1.1")
    plain = run("query", "archive", *keys, "--level", "instance")
    assert "SOPInstanceUID=1.2.1.1.0" in plain.stdout
    with reading(zone.engine) as session:
        bodies = [
            entry.body for entry in session.query(ClinicalLedgerEntry).filter_by(kind="archive.queried")
        ]
    assert len(bodies) == 2
    assert "P1" not in str(bodies)


def test_a_fetch_is_ordered_looked_at_and_pulled_by_command(
    zone: ClinicalZone, run: Callable[..., Result]
) -> None:
    assert run("fetch", "list").stdout == "no fetch yet\n"
    fetch_id = json.loads(run("fetch", "start", "archive", "PatientID=P1", "--json").stdout)["id"]
    finish(zone, fetch_id)
    assert "listed" in run("fetch", "list").stdout
    assert run("fetch", "go", fetch_id[:8]).exit_code == 0
    finish(zone, fetch_id)
    shown = json.loads(run("fetch", "show", fetch_id[:8], "--json").stdout)
    assert (shown["state"], shown["done"], shown["received"]) == ("done", 2, 4)
    assert all(one["study_id"] for one in shown["list"])
    assert "P1" not in run("fetch", "show", fetch_id).stdout
    study_id = shown["list"][0]["study_id"]
    ordered = run("fetch", "priors", study_id, "archive", "--most", "2", "--yes")
    assert ordered.exit_code == 0
    assert run("fetch", "cancel", ordered.stdout[:32]).exit_code == 0
    with reading(zone.engine) as session:
        assert sorted(row.state for row in session.query(Fetch)) == ["cancelled", "done"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("query", "nobody", "PatientID=1"), "no peer of this name"),
        (("query", "archive", "PatientID"), "KEYWORD=VALUE"),
        (("query", "archive", "PatientID=1", "--level", "room"), "level: expected"),
        (("query", "archive", "StudyDate=yesterday"), "StudyDate"),
        (("fetch", "start", "archive", "PatientID="), "at least one key"),
        (("fetch", "start", "archive", "PatientID=1", "--hours", "late"), "hours"),
        (("fetch", "priors", "nothing", "archive"), "study: there is none"),
        (("fetch", "show", "abc"), "expected the id of one"),
    ],
)
def test_wrong_use_is_named(
    zone: ClinicalZone, run: Callable[..., Result], arguments: tuple[str, ...], words: str
) -> None:
    del zone
    answer = run(*arguments)
    assert (answer.exit_code, words in answer.output) == (2, True), answer.output
