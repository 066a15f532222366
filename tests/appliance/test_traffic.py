from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from appliance import filing, quarantine, traffic
from appliance.db.clinical import QuarantineItem
from appliance.db.engine import make_engine, reading, writing
from appliance.db.peers import Peer, Traffic
from appliance.intake import open_inbox
from appliance.traffic import IN, OUT, Flow, Meter
from tests.appliance.test_intake import receive
from tests.dicom_node.support import ct

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.node import ClinicalZone

NINE = datetime(2026, 3, 2, 9, 20, tzinfo=UTC)


def rows(engine: Engine, **wanted: Any) -> list[Traffic]:
    with reading(engine) as session:
        statement = select(Traffic).filter_by(**wanted).order_by(Traffic.hour, Traffic.station_name)
        return list(session.scalars(statement))


def test_flows_of_one_hour_become_one_row_and_the_next_hour_another(clinical_engine: Engine) -> None:
    with writing(clinical_engine) as session:
        traffic.add(session, [Flow(IN, "PACS", instances=2, size_bytes=10, at=NINE)] * 2)
    with writing(clinical_engine) as session:
        later = NINE + timedelta(minutes=30)
        traffic.add(session, [Flow(IN, "PACS", instances=1, failures=3, at=later)])
        traffic.add(session, [Flow(IN, "PACS", instances=1, at=NINE), Flow(OUT, "PACS", rejected=1, at=NINE)])
        traffic.add(session, [Flow(IN, "PACS", associations=1, at=NINE + timedelta(hours=1))])
    first, second = rows(clinical_engine, direction=IN)
    assert (first.hour, first.instances, first.size_bytes, first.failures) == (
        NINE.replace(minute=0),
        6,
        20,
        3,
    )
    assert first.last_at == later
    assert (second.hour, second.associations) == (NINE.replace(hour=10, minute=0), 1)
    assert [row.rejected for row in rows(clinical_engine, direction=OUT)] == [1]


def test_several_processes_add_to_the_same_rows(clinical_url: str) -> None:
    def write(numbers: list[int]) -> None:
        engine = make_engine(clinical_url)
        for number in numbers:
            with writing(engine) as session:
                traffic.add(
                    session,
                    [Flow(IN, f"CT{(number + shift) % 3}", instances=1, at=NINE) for shift in range(3)],
                )
        engine.dispose()

    writers = [threading.Thread(target=write, args=(list(range(start, start + 10)),)) for start in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    engine = make_engine(clinical_url)
    assert [row.instances for row in rows(engine)] == [40, 40, 40]
    engine.dispose()


def test_what_was_received_counts_for_its_peer_and_its_scanner(clinical_zone: ClinicalZone) -> None:
    inbox = open_inbox(clinical_zone)
    with_station, without = ct(StationName="CT-ROOM-1"), ct()
    without.pop("StationName", None)
    entries = [receive(inbox, ds) for ds in (with_station, with_station, without)]
    filing.index_batch(clinical_zone, inbox)
    whole, station = rows(clinical_zone.engine)
    assert (whole.ae_title, whole.station_name, whole.instances) == ("PACS", "", 3)
    assert whole.size_bytes == sum(entry.size_bytes for entry in entries)
    assert (station.ae_title, station.station_name, station.instances) == ("PACS", "CT-ROOM-1", 2)
    assert whole.last_at == max(entry.received_at for entry in entries)


def test_an_entry_that_is_filed_again_after_a_crash_counts_once(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = open_inbox(clinical_zone)
    receive(inbox, ct())
    receive(inbox, ct(), sop_class_uid="1.2.3")  # stopped: not what its data set says

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filing, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            filing.index_batch(clinical_zone, inbox)
    assert inbox.count() == 2
    filing.index_batch(clinical_zone, inbox)
    assert inbox.count() == 0
    assert [row.instances for row in rows(clinical_zone.engine, station_name="")] == [2]


def test_what_leaves_quarantine_to_be_filed_is_not_counted_again(clinical_zone: ClinicalZone) -> None:
    inbox = open_inbox(clinical_zone)
    receive(inbox, ct(), sop_class_uid="1.2.3")
    filing.index_batch(clinical_zone, inbox)
    with writing(clinical_zone.engine) as session:
        item = session.scalars(select(QuarantineItem)).one()
        quarantine.file_again(session, clinical_zone.ledger, item.id, actor="test")
    quarantine.settle(clinical_zone, inbox)
    filing.index_batch(clinical_zone, inbox)
    assert [row.instances for row in rows(clinical_zone.engine, station_name="")] == [1]


def test_a_meter_keeps_what_the_database_did_not_take(clinical_zone: ClinicalZone, tmp_path: Path) -> None:
    meter = Meter(make_engine(f"sqlite:///{tmp_path / 'none' / 'x.db'}"))
    meter.note(Flow(IN, "PACS", associations=1, at=NINE))
    with pytest.raises(Exception, match="unable to open"):
        meter.flush()
    meter.note(Flow(IN, "PACS", associations=1, at=NINE))
    meter._engine = clinical_zone.engine
    meter.flush()
    meter.flush()
    assert [row.associations for row in rows(clinical_zone.engine)] == [2]


def test_callers_that_invent_titles_share_one_row(clinical_zone: ClinicalZone) -> None:
    with writing(clinical_zone.engine) as session:
        session.add(Peer(name="PACS", ae_title="PACS", host="10.0.0.1", may_send=True))
    meter = Meter(clinical_zone.engine)
    for number in range(3000):
        meter.note(Flow(IN, f"X{number}", rejected=1, at=NINE))
    meter.note(Flow(IN, "PACS", rejected=1, at=NINE))
    assert len(meter._flows) <= 1002
    meter.flush()
    found = {row.ae_title: row.rejected for row in rows(clinical_zone.engine)}
    assert sum(found.values()) == 3001
    assert set(found) <= {"PACS", traffic.STRANGERS}


def test_old_hours_are_forgotten(clinical_engine: Engine) -> None:
    with writing(clinical_engine) as session:
        old = NINE - timedelta(days=401)
        traffic.add(session, [Flow(IN, "PACS", instances=1, at=moment) for moment in (NINE, old)])
    assert traffic.thin(clinical_engine, traffic.oldest_kept(NINE, 400)) == 1
    assert [row.hour for row in rows(clinical_engine)] == [NINE.replace(minute=0)]
