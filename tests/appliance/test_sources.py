"""Sources as staff see them: the overview, one source, the commands."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from appliance import alarms, cli, silence, sources, traffic
from appliance.db.clinical import Alarm
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.habits import Week
from appliance.node import ClinicalZone, open_clinical
from appliance.settings import load_settings
from appliance.silence import Source
from appliance.traffic import IN, OUT, Flow

if TYPE_CHECKING:
    from sqlalchemy import Engine

AT = datetime(2026, 3, 6, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEEK = Week(zone=UTC)


def planted(engine: Engine, at: datetime = AT) -> None:
    """Plant a PACS with a scanner that sent each hour for four weeks, and one that stopped three days ago."""
    flows = []
    for number in range(4 * 168):
        moment = at - number * HOUR
        stations = ("", "CT1") if number < 72 else ("", "CT1", "MR1")
        flows += [Flow(IN, "PACS", name, instances=2, size_bytes=100, at=moment) for name in stations]
    flows += [Flow(IN, "PACS", associations=1, failures=3, at=at), Flow(IN, "", rejected=7, at=at)]
    flows += [Flow(OUT, "WS", instances=5, failures=1, size_bytes=50, at=at - 30 * HOUR)]
    with writing(engine) as session:
        session.add(Peer(name="Main PACS", ae_title="PACS", host="10.0.0.1", may_send=True))
        session.add(Peer(name="Idle", ae_title="IDLE", host="10.0.0.2", may_send=True))
        session.add(Peer(name="Room", ae_title="WS", host="10.0.0.3", port=104, is_destination=True))
        traffic.add(session, flows)


def test_the_overview_has_peers_their_scanners_and_destinations(clinical_engine: Engine) -> None:
    planted(clinical_engine)
    with writing(clinical_engine) as session:
        detail = {"ae_title": "PACS", "station_name": "MR1", "last_at": AT.isoformat()}
        alarms.raise_once(session, silence.SILENCE, Source("PACS", "MR1").subject, detail, AT)
    with reading(clinical_engine) as session:
        found = sources.overview(session, AT)
    rows = {(row.ae_title, row.station_name): row for row in found.sources}
    assert list(rows) == [("IDLE", ""), ("PACS", ""), ("PACS", "CT1"), ("PACS", "MR1")]
    assert [row.state for row in rows.values()] == ["no traffic", "watched", "watched", "silent"]
    pacs, scanner = rows["PACS", ""], rows["PACS", "MR1"]
    assert (pacs.peer, pacs.last_at) == ("Main PACS", AT)
    assert (pacs.week.instances, pacs.week.size_bytes, pacs.week.failures) == (336, 16800, 3)
    assert (pacs.hours, pacs.last_full_hour) == ((2,) * 168, 2)
    assert (scanner.last_at, sum(scanner.hours)) == (AT - 72 * HOUR, 2 * 96)
    assert scanner.alarm is not None
    assert found.strangers.rejected == 7
    (destination,) = found.destinations
    assert (destination.peer, destination.week.instances, destination.week.failures) == ("Room", 5, 1)


def test_a_web_peer_without_an_ae_title_goes_by_its_name(clinical_engine: Engine) -> None:
    with writing(clinical_engine) as session:
        session.add(Peer(name="Web archive of the region", protocol="dicomweb", ae_title="", host=""))
        traffic.add(session, [Flow(way, "Web archive of t", instances=1, at=AT) for way in (IN, OUT)])
    with reading(clinical_engine) as session:
        found = sources.overview(session, AT)
    assert [row.peer for row in (*found.sources, *found.destinations)] == ["Web archive of the region"] * 2


def test_one_source_shows_its_habits_and_when_it_would_be_missed(clinical_engine: Engine) -> None:
    planted(clinical_engine)
    with reading(clinical_engine) as session:
        found = sources.detail(session, Source("PACS"), AT, WEEK)
        assert sources.detail(session, Source("NOBODY"), AT, WEEK) is None
        idle = sources.detail(session, Source("IDLE"), AT, WEEK)
    assert found is not None
    assert (found.weeks, found.hours_a_week) == (4, 168)
    assert found.profile == (2.0,) * 168
    assert found.silent_from is not None
    assert AT + 5 * HOUR < found.silent_from < AT + 8 * HOUR
    assert idle is not None
    assert (idle.silent_from, set(idle.profile)) == (None, {0.0})


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "n"
    words = ["init", str(path), "--port", "0", "--web-port", "0"]
    assert CliRunner().invoke(cli.build(), words).exit_code == 0
    return str(path / "cloister.toml")


def cloister(config: str, *words: str) -> Result:
    return CliRunner().invoke(cli.build(), ["source", *words, "--config", config])


def zone_of(config: str) -> ClinicalZone:
    return open_clinical(load_settings(Path(config)))


def test_the_commands_list_show_and_acknowledge(config: str) -> None:
    assert "nothing was sent" in cloister(config, "list").output
    zone = zone_of(config)
    at = datetime.now(UTC)
    planted(zone.engine, at)
    (zone.root / silence.LOOKED).write_text(at.isoformat(), encoding="ascii")
    silence.Watch(zone, Week()).look(at)
    with reading(zone.engine) as session:
        (alarm,) = session.scalars(select(Alarm))
    listed = cloister(config, "list").output
    assert "SILENT PACS MR1" in listed
    assert "not acknowledged" in listed
    known = json.loads(cloister(config, "list", "--json").output)
    assert [row["state"] for row in known["sources"]] == ["no traffic", "watched", "watched", "silent"]
    shown = cloister(config, "show", "PACS", "--station", "CT1").output
    assert "known for 4.0 weeks" in shown
    assert "missed from" in shown
    assert len(json.loads(cloister(config, "show", "PACS", "--json").output)["profile"]) == 168
    assert cloister(config, "show", "NOBODY").exit_code == 2
    assert cloister(config, "acknowledge", alarm.id).output == "acknowledged\n"
    assert cloister(config, "acknowledge", alarm.id).exit_code == 2
    assert "acknowledged by command" in cloister(config, "list").output
