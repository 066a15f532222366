"""Fetches on databases of both kinds, delivered twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance import fetch_views, fetching, peers
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, FetchedStudy
from appliance.fetching import Manner, Order
from appliance.peers import PeerError
from appliance.work import claimed
from tests.appliance.fetch_node import add_archive, finish, indexing, step, study_files
from tests.appliance.test_catalogue import zone
from tests.appliance.test_fetching import answers, gives, held
from tests.dicom_node.archives import odd_archive

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

__all__ = ["zone"]  # a fixture


def test_a_fetch_goes_its_way_and_is_shown(zone: ClinicalZone, tmp_path: Path) -> None:
    served = {uid: study_files(tmp_path, uid, 2, PatientID="P1") for uid in ("1.2.1", "1.2.2")}
    with odd_archive(find=answers(("1.2.1", 2), ("1.2.2", 2)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}), actor="staff")
        finish(zone, fetch_id)
        fetching.act(zone, fetch_id, "start", actor="staff")
        step(zone, fetch_id)
        with reading(zone.engine) as session:
            (row,) = fetch_views.list_fetches(session, identity=False)
            listed = fetch_views.list_studies(session, fetch_id)
        assert (row.state, row.studies, row.done, row.left, row.received) == ("running", 2, 1, 1, 2)
        assert (row.keys, dict(row.match), row.instances) == (("PatientID",), {}, 4)
        assert [(one.state, one.study_id is not None) for one in listed] == [
            ("queued", False),
            ("done", True),
        ]
        finish(zone, fetch_id)
    assert held(zone) == {"1.2.1": 2, "1.2.2": 2}
    with writing(zone.engine) as session, pytest.raises(PeerError, match="fetches refer"):
        peers.remove_peer(session, zone.ledger, name="archive")


def test_a_fetch_that_is_listed_twice_has_each_study_once(zone: ClinicalZone, tmp_path: Path) -> None:
    served = {"1.2.1": study_files(tmp_path, "1.2.1", 1, PatientID="P1")}
    with odd_archive(find=answers(("1.2.1", 1)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        order = Order("archive", {"PatientID": "P1"}, Manner(at_once=True))
        fetch_id = fetching.order(zone, order, actor="staff")
        step(zone, fetch_id)
        with writing(zone.engine) as session:
            session.get_one(Fetch, fetch_id).state = "looking"
        step(zone, fetch_id)
        with reading(zone.engine) as session:
            assert session.query(FetchedStudy).count() == 1
            (job_id,) = [job.id for job in session.query(ClinicalJob)]
        assert finish(zone, fetch_id).state == "done"
        with claimed(zone.engine, ClinicalJob, job_id, "test", 60) as claim:
            assert claim is None
