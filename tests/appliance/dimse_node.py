"""A node's SCP with all its services, running on the zone of a test."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from appliance import dimse
from appliance.callers import DatabaseCallers
from appliance.db.engine import writing
from appliance.db.peers import Peer
from appliance.filing import open_inbox
from appliance.names import Names
from dicom_node.scp import SCPConfig, StorageSCP
from tests.dicom_node.support import Heard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.node import ClinicalZone

CT = str(CTImageStorage)
EXPLICIT = str(ExplicitVRLittleEndian)


@dataclass
class Node:
    """A zone and its SCP, running."""

    zone: ClinicalZone
    scp: StorageSCP
    heard: Heard
    port: int
    callers: DatabaseCallers

    def peer(self, name: str, **values: Any) -> None:
        """Know a peer; its AE title is its name unless another is given."""
        with writing(self.zone.engine) as session:
            session.add(Peer(name=name, **{"ae_title": name, "host": "127.0.0.1", **values}))
        self.callers.refresh()


@contextmanager
def running_node(zone: ClinicalZone) -> Iterator[Node]:
    """Run a node's SCP that knows a workstation, which may query, and a scanner, which may send."""
    callers = DatabaseCallers(zone.engine, Names(), zone.root / "senders.json")
    heard = Heard()
    scp = StorageSCP(SCPConfig("CLOISTER"), open_inbox(zone), callers, heard, dimse.services(zone))
    started = Node(zone, scp, heard, scp.start(), callers)
    started.peer("WORKSTATION", may_query=True)
    started.peer("SCANNER", may_send=True)
    try:
        yield started
    finally:
        scp.stop()
