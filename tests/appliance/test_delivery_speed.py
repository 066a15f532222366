"""The speed of deliveries: bounded for each destination, and none is lost by being slow."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from pydicom import dcmread
from sqlalchemy import select

from appliance import outlets
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading
from appliance.db.peers import Peer
from appliance.work import LeaseLostError, claimed
from dicom_node.dicomweb import stow
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller
from tests.appliance.delivery_scene import Scene, running_scene
from tests.dicom_node.dicomweb.server import frame, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone

BOUND_KIB_PER_S = 150


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


@contextmanager
def web_archive(folder: Path) -> Iterator[str]:
    reception = stow.Reception(
        inbox=Inbox(folder, min_free_bytes=0),
        caller_of=lambda _: Caller("CLOISTER", "OTHER", "127.0.0.1"),
        on_stored=lambda *_: None,
        max_requests=2,
        timeout_s=10,
    )
    app = FastAPI()
    app.include_router(stow.router(frame([]), reception))
    with served(app) as url:
        yield url


def seconds_of(scene: Scene) -> float:
    began = time.monotonic()
    row = scene.deliver()
    assert row.state == "delivered", row.reason
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", ["dimse", "dicomweb"])
def test_the_speed_to_a_destination_is_bounded(scene: Scene, tmp_path: Path, protocol: str) -> None:
    path = scene.zone.root / "results" / "r.dcm"
    ds = dcmread(path)
    ds.Rows = ds.Columns = 400
    ds.PixelData = bytes(400 * 400 * 2)
    ds.save_as(path)
    least_s = path.stat().st_size / 1024 / BOUND_KIB_PER_S - 1  # what one second lets pass goes at once
    scene.change(Peer, max_kib_per_s=BOUND_KIB_PER_S)
    if protocol == "dimse":
        assert seconds_of(scene) >= least_s
        return
    with web_archive(tmp_path / "web") as url:
        scene.change(Peer, protocol="dicomweb", url=url, port=0)
        assert seconds_of(scene) >= least_s


def test_a_slow_delivery_stays_ours_and_one_that_was_taken_over_stops(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlets, "BEAT_EVERY_S", 0.0)
    with reading(scene.zone.engine) as session:
        peer = session.scalars(select(Peer)).one()
    with claimed(scene.zone.engine, ClinicalJob, scene.job_id, "one", 5) as claim:
        assert claim is not None
        until = scene.job.lease_until
        assert until is not None
        take = outlets.pace(peer, claim)
        take(1)
        renewed = scene.job.lease_until
        assert renewed is not None
        assert renewed > until
        scene.change(ClinicalJob, lease_owner="another")
        with pytest.raises(LeaseLostError):
            take(1)
