"""A radiology workstation: takes results over the network, stores them, looks at each, as another process.

``python -m appliance.demo.workstation FOLDER --ae-title AE`` writes its port as the first JSON line, then one
line for each instance that it received; SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_node.inbox import Inbox
from dicom_node.ports import Decision
from dicom_node.scp import SCPConfig, StorageSCP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from pydicom.dataset import Dataset

    from dicom_node.inbox import InboxEntry
    from dicom_node.ports import Caller

MIN_FREE_BYTES: Final = 64 << 20
CERTAINTY: Final = ("111012", "DCM")  # Certainty of Finding
PERCENT: Final = ("%", "UCUM")


@dataclass(frozen=True)
class Look:
    """What a person at the workstation would see of one instance; ``problem`` is empty if it can."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    patient_name: str
    modality: str
    referenced: tuple[str, ...]
    findings: tuple[str, ...]
    probabilities: tuple[float, ...]
    problem: str


def look_at(path: Path) -> Look:
    """Read one received instance as a viewer does; what is wrong becomes ``problem``."""
    try:
        ds = dcmread(path)
        texts = tuple(_findings(ds))
        problem = _problem(ds)
    except (
        InvalidDicomError,
        OSError,
        ValueError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        return Look(str(path), "", "", "", "", "", "", (), (), (), f"cannot be read ({type(error).__name__})")
    return Look(
        path=str(path),
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        study_instance_uid=str(ds.StudyInstanceUID),
        patient_id=str(ds.get("PatientID", "")),
        patient_name=str(ds.get("PatientName", "")),
        modality=str(ds.get("Modality", "")),
        referenced=tuple(sorted({str(item.ReferencedSOPInstanceUID) for item in _references(ds)})),
        findings=texts,
        probabilities=tuple(_probabilities(ds)),
        problem=problem,
    )


def _problem(ds: Dataset) -> str:
    if str(ds.file_meta.MediaStorageSOPInstanceUID) != str(ds.SOPInstanceUID):
        return "the request named another instance than the data set"
    if "PixelData" in ds and int(ds.pixel_array.max()) == int(ds.pixel_array.min()):
        return "the picture is empty"
    if "PixelData" not in ds and "ContentSequence" not in ds:
        return "neither a picture nor a report"
    return ""


def _nested(ds: Dataset) -> Iterator[Dataset]:
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _nested(item)


def _references(ds: Dataset) -> Iterator[Dataset]:
    return (item for item in _nested(ds) if "ReferencedSOPInstanceUID" in item)


def _findings(ds: Dataset) -> Iterator[str]:
    """Yield the coded values of a report, as its concept name and its value."""
    for item in _nested(ds):
        if item.get("ValueType") == "CODE" and item.get("ConceptNameCodeSequence"):
            value = item.get("ConceptCodeSequence")
            if value:
                yield f"{item.ConceptNameCodeSequence[0].CodeMeaning}: {value[0].CodeMeaning}"


def _probabilities(ds: Dataset) -> Iterator[float]:
    """Yield the certainties of a report's findings, 0 to 1."""
    for item in _nested(ds):
        if item.get("ValueType") == "NUM" and _code(item.get("ConceptNameCodeSequence")) == CERTAINTY:
            for measured in item.get("MeasuredValueSequence", ()):
                percent = _code(measured.get("MeasurementUnitsCodeSequence")) == PERCENT
                yield float(measured.NumericValue) / (100 if percent else 1)


def _code(sequence: Any) -> tuple[str, str]:
    if not sequence:
        return "", ""
    return str(sequence[0].get("CodeValue", "")), str(sequence[0].get("CodingSchemeDesignator", ""))


class Everybody:
    """A caller policy that takes every caller: the workstation of a demonstration."""

    def decide(self, caller: Caller) -> Decision:
        """Allow."""
        del caller
        return Decision(allowed=True)


class Arrivals:
    """A listener that queues what arrived."""

    def __init__(self) -> None:
        self.paths: queue.SimpleQueue[Path | None] = queue.SimpleQueue()

    def on_accepted(self, caller: Caller) -> None:
        """Nothing to do."""

    def on_rejected(self, caller: Caller, reason: str) -> None:
        """Nothing to do: every caller is taken."""

    def on_received(self, entry: InboxEntry) -> None:
        """Queue the entry's file."""
        self.paths.put(entry.path)

    def on_refused(self, caller: Caller, status: int, reason: str) -> None:
        """Say so on standard error."""
        del caller
        sys.stderr.write(f"refused with 0x{status:04X}: {reason}\n")

    def on_failed(self, caller: Caller, error: Exception) -> None:
        """Say so on standard error."""
        del caller
        sys.stderr.write(f"failed: {type(error).__name__}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="appliance.demo.workstation")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ae-title", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args(argv)
    arrivals = Arrivals()

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        arrivals.paths.put(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    inbox = Inbox(arguments.folder, min_free_bytes=MIN_FREE_BYTES)
    config = SCPConfig(ae_title=arguments.ae_title, host=arguments.host, port=arguments.port)
    scp = StorageSCP(config, inbox, Everybody(), arrivals)
    _say({"port": scp.start()})
    try:
        while (path := arrivals.paths.get()) is not None:
            _say(vars(look_at(path)))
    finally:
        scp.stop()
    return 0


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
