"""Who looked at which study over DICOMweb: in the ledger, once in a while for each person or program."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.clinical import Study
from appliance.db.engine import writing
from appliance.traffic import OUT, Flow
from appliance.web.gate import VISIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request

    from appliance.web.desk import Desk, Visit
    from dicom_node.query import StoredInstance

STUDY_READ: Final = "study.read"
AGAIN_AFTER_S: Final = 600.0  # a viewer asks for each frame by itself
_MAX_KNOWN: Final = 10_000


class Reads:
    """Takes note of what is retrieved; a read that cannot be noted is refused by its error."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str, str], float] = {}

    def note(self, request: Request, instances: Sequence[StoredInstance]) -> None:
        """Write who reads, before anything is answered."""
        visit: Visit = request.scope[VISIT]
        for uid in {one.study_instance_uid for one in instances}:
            key = (visit.viewer.user_id, visit.bearer, uid)
            with self._lock:
                known = time.monotonic() - self._noted.get(key, float("-inf")) < AGAIN_AFTER_S
            if not known:
                self._write(visit, uid)
                with self._lock:
                    if len(self._noted) >= _MAX_KNOWN:
                        self._noted.clear()
                    self._noted[key] = time.monotonic()

    def note_sent(self, request: Request, instances: Sequence[StoredInstance]) -> None:
        """Write who reads, and count what a program is sent."""
        self.note(request, instances)
        bearer = request.scope[VISIT].bearer
        if bearer:
            size = sum(one.size_bytes for one in instances)
            sent = Flow(OUT, bearer[:16], associations=1, instances=len(instances), size_bytes=size)
            self._desk.meter.note(sent)

    def _write(self, visit: Visit, study_instance_uid: str) -> None:
        zone = self._desk.zone
        with writing(zone.engine) as session:
            row_id = session.scalar(select(Study.id).where(Study.study_instance_uid == study_instance_uid))
            if row_id is not None:
                body = {"by": "program" if visit.bearer else "person"}
                actor = visit.viewer.user_id
                zone.ledger.append(session, kind=STUDY_READ, subject_id=row_id, body=body, actor=actor)
