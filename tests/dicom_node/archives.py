"""Archives to ask and to fetch from: DCMTK's dcmqrscp, Orthanc, and one of pynetdicom that misbehaves."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from dicom_node import scu
from dicom_node.query_scu import STUDY_ROOT_FIND
from dicom_node.scu import Destination
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import DCMTK, free_port, kill_group, listening, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.dicom_node.orthanc import Orthanc

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

_CONFIGURATION = """
NetworkTCPPort = {port}
MaxPDUSize = 65536
MaxAssociations = 16
HostTable BEGIN
ours = ({ours}, 127.0.0.1, {ours_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
DCMQR {folder} RW (500, 2048mb) ANY
AETable END
"""


@contextmanager
def running_dcmqrscp(folder: Path, ours: str = "CLOISTER", ours_port: int = 1) -> Iterator[Destination]:
    """Run DCMTK's archive; it knows one destination."""
    storage = folder / "dcmqr"
    storage.mkdir(parents=True)
    port = free_port()
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(
        _CONFIGURATION.format(port=port, ours=ours, ours_port=ours_port, folder=storage), encoding="ascii"
    )
    child = subprocess.Popen(
        [program(DCMTK / "dcmqrscp"), "-c", str(configuration), "--disable-host-lookup"],
        start_new_session=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listening(port), "dcmqrscp listens")
        yield Destination("DCMQR", "127.0.0.1", port, timeout_s=10)
    finally:
        kill_group(child)


@contextmanager
def orthanc_archive(
    folder: Path, ours: str = "CLOISTER", ours_port: int = 1, **more: Any
) -> Iterator[tuple[Orthanc, Destination]]:
    """Run Orthanc as an archive that knows one destination."""
    modality = {"AET": ours, "Host": "127.0.0.1", "Port": ours_port}
    settings = {
        "DicomModalities": {"ours": modality},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        **more,
    }
    with running_orthanc(folder, **settings) as orthanc:
        yield orthanc, Destination("ORTHANC", "127.0.0.1", orthanc.dicom_port, timeout_s=10)


def fill(destination: Destination, paths: Sequence[Path]) -> None:
    """Store files in an archive."""
    outcomes = scu.store(paths, destination, "FILLER")
    assert all(outcome.ok for outcome in outcomes), [one.reason for one in outcomes if not one.ok]


@contextmanager
def odd_archive(**handlers: Callable[[Any], Any]) -> Iterator[Destination]:
    """Run a pynetdicom archive whose answers a test writes: handlers of ``find``, ``move``, ``get``."""
    ae = AE(ae_title="ODD")
    contexts = [
        build_context(STUDY_ROOT_FIND),
        build_context(STUDY_ROOT_MOVE),
        build_context(STUDY_ROOT_GET),
    ]
    for syntaxes in ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"):
        context = build_context(syntaxes)
        context.scp_role, context.scu_role = True, False
        contexts.append(context)
    events = {"find": evt.EVT_C_FIND, "move": evt.EVT_C_MOVE, "get": evt.EVT_C_GET}
    server = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=contexts,
        evt_handlers=[(events[name], handler) for name, handler in handlers.items()],
    )
    try:
        yield Destination("ODD", "127.0.0.1", server.server_address[1], timeout_s=5)
    finally:
        server.shutdown()
        ae.shutdown()
