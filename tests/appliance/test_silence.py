"""Alarms of silent sources, on real rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from appliance import alarms, durable, silence, traffic
from appliance.db.clinical import Alarm, ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.habits import Week
from appliance.traffic import IN, Flow

if TYPE_CHECKING:
    from appliance.node import ClinicalZone

HOUR = timedelta(hours=1)
START = datetime(2026, 1, 5, tzinfo=UTC)
END = START + timedelta(weeks=8)


@dataclass
class Ward:
    """A node whose PACS and its two scanners sent each hour for eight weeks."""

    zone: ClinicalZone
    watch: silence.Watch

    def send(self, *stations: str, at: datetime, title: str = "PACS") -> None:
        with writing(self.zone.engine) as session:
            traffic.add(session, [Flow(IN, title, name, instances=3, at=at) for name in ("", *stations)])

    def look(self, at: datetime) -> list[str]:
        """Look as the indexer does, and say what is raised."""
        self.watch.look(at)
        return [alarm.subject for alarm in self.alarms() if alarm.over_at is None]

    def alarms(self) -> list[Alarm]:
        with reading(self.zone.engine) as session:
            return list(session.scalars(select(Alarm).order_by(Alarm.raised_at, Alarm.subject)))


def looked(zone: ClinicalZone, at: datetime) -> None:
    durable.write_whole(zone.root / silence.LOOKED, at.isoformat().encode())


@pytest.fixture
def ward(clinical_zone: ClinicalZone) -> Ward:
    flows = [
        Flow(IN, "PACS", station, instances=1, at=START + number * HOUR + 10 * HOUR / 60)
        for number in range(8 * 168)
        for station in ("", "CT1", "MR1")
    ]
    with writing(clinical_zone.engine) as session:
        session.add(Peer(name="PACS", ae_title="PACS", host="10.0.0.1", may_send=True))
        traffic.add(session, flows)
    looked(clinical_zone, END - 2 * HOUR / 60)
    found = Ward(clinical_zone, silence.Watch(clinical_zone, Week(zone=UTC)))
    assert found.look(END) == []
    return found


def test_an_alarm_is_raised_once_and_is_over_when_the_source_sends_again(ward: Ward) -> None:
    assert ward.look(END + 4 * HOUR) == []
    assert ward.look(END + 6 * HOUR) == ["PACS"]
    assert ward.look(END + 7 * HOUR) == ["PACS"]
    ward.send("CT1", "MR1", at=END + 7 * HOUR)
    assert ward.look(END + 7 * HOUR + timedelta(minutes=1)) == []
    (alarm,) = ward.alarms()
    assert alarm.raised_at == END + 6 * HOUR
    assert alarm.over_at == END + 7 * HOUR + timedelta(minutes=1)
    assert alarm.detail["ae_title"] == "PACS"


def test_one_scanner_behind_a_peer_is_missed_alone(ward: Ward) -> None:
    for number in range(7):
        ward.send("MR1", at=END + number * HOUR)
    assert ward.look(END + 7 * HOUR) == ["PACS\\CT1"]


def test_echoes_are_no_sign_of_a_source_that_sends(ward: Ward) -> None:
    with writing(ward.zone.engine) as session:
        last = END - HOUR / 60
        traffic.add(
            session, [Flow(IN, "PACS", associations=1, at=last + number * HOUR) for number in range(7)]
        )
    assert ward.look(END + 7 * HOUR) == ["PACS"]
    assert ward.alarms()[0].detail["last_at"] == (END - 50 * HOUR / 60).isoformat()


@pytest.mark.parametrize("change", [{"watch_silence": False}, {"enabled": False}, {"may_send": False}])
def test_who_is_not_watched_raises_none_and_ends_what_was_raised(ward: Ward, change: dict[str, bool]) -> None:
    assert ward.look(END + 7 * HOUR) == ["PACS"]
    with writing(ward.zone.engine) as session:
        session.execute(update(Peer).values(**change))
    assert ward.look(END + 8 * HOUR) == []


def test_hours_without_the_node_are_no_silence(ward: Ward) -> None:
    again = Ward(ward.zone, silence.Watch(ward.zone, Week(zone=UTC)))
    assert again.look(END + 20 * HOUR) == []
    assert again.look(END + 24 * HOUR) == []
    assert again.look(END + 26 * HOUR) == ["PACS"]


def test_a_restart_hides_nothing(ward: Ward) -> None:
    assert ward.look(END + 4 * HOUR) == []
    looked(ward.zone, END + 6 * HOUR)
    again = Ward(ward.zone, silence.Watch(ward.zone, Week(zone=UTC)))
    assert again.look(END + 6 * HOUR + timedelta(minutes=2)) == ["PACS"]


def test_what_was_forgotten_raises_no_alarm(ward: Ward) -> None:
    assert ward.look(END + 7 * HOUR) == ["PACS"]
    assert ward.look(END + timedelta(weeks=9)) == []


def test_switching_it_off_ends_what_was_raised(ward: Ward) -> None:
    ward.look(END + 7 * HOUR)
    ward.watch.end_all(END + 8 * HOUR)
    assert [alarm.over_at for alarm in ward.alarms()] == [END + 8 * HOUR]


def test_acknowledging_is_recorded_once_and_ends_nothing(ward: Ward) -> None:
    ward.look(END + 7 * HOUR)
    (alarm,) = ward.alarms()
    with writing(ward.zone.engine) as session:
        alarms.acknowledge(session, ward.zone.ledger, alarm.id, actor="u1")
    with writing(ward.zone.engine) as session, pytest.raises(alarms.AlarmError, match="acknowledged already"):
        alarms.acknowledge(session, ward.zone.ledger, alarm.id, actor="u2")
    assert ward.look(END + 8 * HOUR) == ["PACS"]
    with reading(ward.zone.engine) as session:
        entry = session.scalars(
            select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == alarms.ACKNOWLEDGED)
        ).one()
    assert (entry.actor, entry.subject_id) == ("u1", alarm.id)
