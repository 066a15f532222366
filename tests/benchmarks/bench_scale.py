"""What an instance costs, and what a search costs, in a small store and in a large one.

The stores are filled with rows (studies of 2 series and 100 instances); then instances of new studies are
received into the inbox, filed, and timed from the inbox to their rows. Small and large stores take turns, on
SQLite and on PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sqlalchemy import insert, text

from appliance import node
from appliance.catalogue import DatabaseCatalogue
from appliance.db.base import new_id
from appliance.db.clinical import Instance, Series, Study, StudyState
from appliance.db.engine import writing
from appliance.filing import index_batch, open_inbox
from appliance.settings import DICOMSettings, Settings, ZoneSettings
from dicom_node.inbox import Announcement
from dicom_node.ports import Caller
from dicom_node.query import Level, Query
from tests.appliance.servers import running_postgresql
from tests.dicom_node.support import ct, encoded

if TYPE_CHECKING:
    from appliance.node import ClinicalZone

PER_SERIES: Final = 50
SERIES: Final = 2
BATCH: Final = 200  # instances that are filed and timed at once
SEARCHES: Final = {
    "patient_id": {"PatientID": "P000123"},
    "name": {"PatientName": "NAME 00012*"},
    "date": {"StudyDate": "20240101-20240103"},
    "modality_and_date": {"ModalitiesInStudy": "CT", "StudyDate": "20240105"},
    "study": {"StudyInstanceUID": "1.2.9.123"},
}


def fill(zone: ClinicalZone, instances: int) -> None:
    """Insert rows as a store of this size has them."""
    studies = instances // (PER_SERIES * SERIES)
    for first in range(0, studies, 100):
        rows: dict[Any, list[dict[str, Any]]] = {Study: [], Series: [], Instance: []}
        for number in range(first, min(first + 100, studies)):
            _add_study(rows, number)
        with writing(zone.engine) as session:
            for table, values in rows.items():
                session.execute(insert(table), values)
    with zone.engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        connection.commit()


def _add_study(rows: dict[Any, list[dict[str, Any]]], number: int) -> None:
    study = {
        "id": new_id(),
        "study_instance_uid": f"1.2.9.{number}",
        "patient_id": f"P{number // 2:06d}",
        "patient_name": f"NAME {number // 2:06d}^GIVEN",
        "study_date": f"2024{number % 12 + 1:02d}{number % 28 + 1:02d}",
        "modalities": "CT" if number % 2 else "MR",
        "state": StudyState.ASSEMBLED,
        "instance_count": PER_SERIES * SERIES,
        "revision": 1,
    }
    rows[Study].append(study)
    for one in range(SERIES):
        series = {
            "id": new_id(),
            "study_id": study["id"],
            "series_instance_uid": f"1.2.9.{number}.{one}",
            "modality": study["modalities"],
        }
        rows[Series].append(series)
        for place in range(PER_SERIES):
            uid = f"1.2.9.{number}.{one}.{place}"
            rows[Instance].append(
                {
                    "id": new_id(),
                    "series_id": series["id"],
                    "sop_instance_uid": uid,
                    "sop_class_uid": str(CTImageStorage),
                    "transfer_syntax_uid": str(ExplicitVRLittleEndian),
                    "path": f"instances/{uid}",
                    "size_bytes": 1,
                    "sha256": "0" * 64,
                    "catalogued": 1,
                }
            )


def file_some(zone: ClinicalZone) -> float:
    """Receive a batch, file it, and return milliseconds for each instance from the inbox to its row."""
    inbox = open_inbox(zone)
    study, series = str(generate_uid()), str(generate_uid())
    for _ in range(BATCH):
        ds = ct(StudyInstanceUID=study, SeriesInstanceUID=series)
        announced = Announcement(str(CTImageStorage), str(ds.SOPInstanceUID), str(ExplicitVRLittleEndian))
        inbox.commit([encoded(ds)], Caller("CT1", "CLOISTER", "127.0.0.1"), announced)
    started = time.perf_counter()
    while index_batch(zone, inbox).total:
        pass
    seconds = time.perf_counter() - started
    if len(DatabaseCatalogue(zone).instances(study)) != BATCH:
        raise RuntimeError("not every instance was filed")
    return seconds / BATCH * 1000


def search(zone: ClinicalZone, repeats: int = 9) -> dict[str, float]:
    """Return the median milliseconds of each search for studies."""
    catalogue = DatabaseCatalogue(zone)
    found = {}
    for name, match in SEARCHES.items():
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            catalogue.find(Query(Level.STUDY, match, limit=101))
            seconds.append(time.perf_counter() - started)
        found[name] = round(statistics.median(seconds) * 1000, 2)
    return found


def opened(folder: Path, url: str) -> ClinicalZone:
    """Make a node and return its clinical zone."""
    clinical = ZoneSettings(database_url=url) if url else ZoneSettings()
    dicom = DICOMSettings(port=0, min_free_mib=1)
    settings = Settings(data_root=folder / "data", clinical=clinical, dicom=dicom)
    node.create_node(settings, "clinical")
    return node.open_clinical(settings)


def run(small: int = 2_000, large: int = 200_000, rounds: int = 5) -> dict[str, Any]:
    """Measure both sizes on both kinds of database.

    Returns
    -------
    dict
        ``rows``: database, instances, ``filed_ms`` (median for one instance), ``search_ms`` by kind;
        ``ratios``: time for one instance in the large store by that in the small one.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with ExitStack() as stack:
        server = stack.enter_context(running_postgresql())
        for kind in ("sqlite", "postgresql"):
            zones = {}
            for size in (small, large):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
                url = server.new_database() if kind == "postgresql" else ""
                zones[size] = opened(folder, url)
                fill(zones[size], size)
            times: dict[int, list[float]] = {size: [] for size in zones}
            for _ in range(rounds):
                for size, zone in zones.items():
                    times[size].append(file_some(zone))
            medians = {size: statistics.median(values) for size, values in times.items()}
            ratios[kind] = round(medians[large] / medians[small], 3)
            for size, zone in zones.items():
                filed = round(medians[size], 3)
                rows.append(
                    {"database": kind, "instances": size, "filed_ms": filed, "search_ms": search(zone)}
                )
                zone.engine.dispose()
    return {"rows": rows, "ratios": ratios}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(run(large=given.large, rounds=given.rounds), indent=2))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
