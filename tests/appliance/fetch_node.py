"""A node that fetches: its SCP, its indexer and its fetch worker, run by a test."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from appliance import fetch_work
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, FetchedStudy, Peer
from appliance.filing import index_batch, open_inbox
from appliance.work import claimed
from tests.dicom_node.support import ct, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone
    from dicom_node.scu import Destination

OPEN = (WorkState.QUEUED, WorkState.FAILED)


@contextmanager
def indexing(zone: ClinicalZone) -> Iterator[None]:
    """File what comes into the inbox."""
    ends = threading.Event()
    inbox = open_inbox(zone)

    def run() -> None:
        while not ends.wait(0.02):
            index_batch(zone, inbox)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(timeout=10)


def add_archive(zone: ClinicalZone, at: Destination, **values: object) -> None:
    """Know an archive by the name ``archive``."""
    fields = {"ae_title": at.ae_title, "host": at.host, "port": at.port, "is_archive": True, **values}
    with writing(zone.engine) as session:
        session.add(Peer(name="archive", **fields))


def step(zone: ClinicalZone, fetch_id: str) -> bool:
    """Do the next step of a fetch as the worker does, without waiting; say whether there was one."""
    with writing(zone.engine) as session:
        session.execute(
            update(ClinicalJob).where(ClinicalJob.state == WorkState.FAILED).values(next_try_at=now())
        )
        job_id = session.scalar(
            select(ClinicalJob.id).where(ClinicalJob.subject_id == fetch_id, ClinicalJob.state.in_(OPEN))
        )
    if job_id is None:
        return False
    with claimed(zone.engine, ClinicalJob, job_id, "test", 60) as claim:
        assert claim is not None
        fetch_work.fetch(zone, claim)
    return True


def finish(zone: ClinicalZone, fetch_id: str) -> Fetch:
    """Work until nothing of a fetch is left to do."""
    wait_until(lambda: not step(zone, fetch_id), "the fetch has ended", 60)
    return load(zone, fetch_id)


def load(zone: ClinicalZone, fetch_id: str) -> Fetch:
    """Return the row."""
    with reading(zone.engine) as session:
        return session.get_one(Fetch, fetch_id)


def rows(zone: ClinicalZone, fetch_id: str) -> list[FetchedStudy]:
    """Return its studies, by UID."""
    statement = select(FetchedStudy).where(FetchedStudy.fetch_id == fetch_id)
    with reading(zone.engine) as session:
        return list(session.scalars(statement.order_by(FetchedStudy.study_instance_uid)))


def study_files(folder: Path, uid: str, count: int = 2, **changes: str) -> list[Path]:
    """Write a study of one series."""
    paths = []
    for number in range(count):
        values = {
            "StudyInstanceUID": uid,
            "SeriesInstanceUID": f"{uid}.1",
            "SOPInstanceUID": f"{uid}.1.{number}",
        }
        paths.append(save(ct({**values, **changes}), folder / f"{uid}-{number}.dcm"))
    return paths
