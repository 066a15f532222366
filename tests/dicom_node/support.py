"""Real peers and real input for the tests of the DICOM node."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicom_node.ports import Caller, CallerPolicy, Decision
from dicom_node.scp import SCPConfig, StorageSCP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dicom_node.inbox import Inbox, InboxEntry

DCMTK = Path("/usr/bin")
CALLER = Caller("PACS", "CLOISTER", "127.0.0.1")


def program(path: Path) -> str:
    """Return a peer's program; without it fail in CI and skip elsewhere."""
    if path.is_file():
        return str(path)
    if os.environ.get("CI") == "true":
        pytest.fail(f"{path} is missing; run tests/peers.sh")
    pytest.skip(f"{path} is missing; run tests/peers.sh")


def dcmtk(name: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a DCMTK program by its absolute path."""
    command = [program(DCMTK / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds; fail with what was awaited when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def ct(changes: Mapping[str, Any] | None = None, *, size: int = 16, **more: Any) -> Dataset:
    """Return a small CT instance; a change to None removes the attribute."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.PatientName = "Doe^Jane"
    ds.PatientID = "4711"
    ds.IssuerOfPatientID = "HOSPITAL"
    ds.PatientBirthDate = "19700101"
    ds.StudyDate = "20260102"
    ds.StudyDescription = "THORAX"
    ds.Modality = "CT"
    ds.BodyPartExamined = "CHEST"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.random.default_rng(1).integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
    for keyword, value in {**(changes or {}), **more}.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """Return the data set without preamble and file meta information."""
    buffer = BytesIO()
    bare = Dataset(ds)
    bare.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return buffer.getvalue()


def save(ds: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write a Part 10 file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


class Everybody:
    """Lets every caller in but those named."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused

    def decide(self, caller: Caller) -> Decision:
        """Refuse by AE title."""
        refused = caller.calling_ae_title in self.refused
        return Decision(allowed=not refused, reason="unknown_ae_title" if refused else "")


@dataclass
class Heard:
    """Listener that keeps everything."""

    accepted: list[Caller] = field(default_factory=list)
    rejected: list[tuple[Caller, str]] = field(default_factory=list)
    received: list[InboxEntry] = field(default_factory=list)
    refused: list[tuple[Caller, int, str]] = field(default_factory=list)
    failed: list[tuple[Caller, Exception]] = field(default_factory=list)

    def on_accepted(self, caller: Caller) -> None:
        """Keep."""
        self.accepted.append(caller)

    def on_rejected(self, caller: Caller, reason: str) -> None:
        """Keep."""
        self.rejected.append((caller, reason))

    def on_received(self, entry: InboxEntry) -> None:
        """Keep."""
        self.received.append(entry)

    def on_refused(self, caller: Caller, status: int, reason: str) -> None:
        """Keep."""
        self.refused.append((caller, status, reason))

    def on_failed(self, caller: Caller, error: Exception) -> None:
        """Keep."""
        self.failed.append((caller, error))


@dataclass
class RunningSCP:
    """An SCP that listens, and what it told its listener."""

    scp: StorageSCP
    inbox: Inbox
    heard: Heard
    port: int


def start_scp(inbox: Inbox, policy: CallerPolicy | None = None, **config: Any) -> RunningSCP:
    """Start an SCP on a free port."""
    heard = Heard()
    scp = StorageSCP(SCPConfig("CLOISTER", **config), inbox, policy or Everybody(), heard)
    return RunningSCP(scp, inbox, heard, scp.start())


def pdu(kind: int, body: bytes) -> bytes:
    """Return a PDU (PS3.8 9.3.1)."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """Return an item, or a sub-item, of an association PDU."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(
    contexts: Sequence[tuple[str, Sequence[str]]],
    calling: str = "PACS",
    called: str = "CLOISTER",
    *,
    user: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU (PS3.8 9.3.2) that proposes the contexts with ids 1, 3, 5 ...

    ``user`` are further sub-items of the user information item, ``more`` further items.
    """
    variable = item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (abstract, syntaxes) in enumerate(contexts):
        body = struct.pack(">BBBB", 2 * number + 1, 0, 0, 0) + item(0x30, abstract.encode())
        variable += item(0x20, body + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes))
    variable += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4") + user) + more
    fixed = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    return pdu(0x01, fixed + variable)


def command(**elements: tuple[int, bytes]) -> bytes:
    """Return a command set from ``name=(element number, value)``."""
    body = b""
    for number, value in sorted(elements.values()):
        padded = value + b"\0" * (len(value) % 2)
        body += struct.pack("<HHI", 0, number, len(padded)) + padded
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def store_rq(sop_class: str, sop_instance: str, message_id: int = 1, *, data_set: bool = True) -> bytes:
    """Return the command set of a C-STORE request."""
    return command(
        sop_class=(0x0002, sop_class.encode()),
        field=(0x0100, struct.pack("<H", 1)),
        message_id=(0x0110, struct.pack("<H", message_id)),
        priority=(0x0700, struct.pack("<H", 0)),
        data_set=(0x0800, struct.pack("<H", 0 if data_set else 0x0101)),
        sop_instance=(0x1000, sop_instance.encode()),
    )


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    """Return a presentation data value item."""
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


class BytePeer:
    """A scripted peer: sends what it is told, byte for byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """Return kind and body of the next PDU; kind 0 when the connection was closed."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except ConnectionError:
                return data
            if not part:
                return data
            data += part
        return data

    def associate(self, *contexts: tuple[str, Sequence[str]], **others: Any) -> tuple[int, bytes]:
        """Request an association; return the answer."""
        self.send(associate_rq(contexts or [(CTImageStorage, [ExplicitVRLittleEndian])], **others))
        return self.receive()

    def store(self, data_set: bytes, sop_class: str, sop_instance: str, message_id: int = 1) -> int:
        """Send a C-STORE request in context 1 and return the status of the answer."""
        self.send(pdu(0x04, pdv(1, 0x03, store_rq(sop_class, sop_instance, message_id))))
        for start in range(0, len(data_set), 16000):
            part = data_set[start : start + 16000]
            last = start + 16000 >= len(data_set)
            self.send(pdu(0x04, pdv(1, 0x02 if last else 0x00, part)))
        return self.status()

    def status(self) -> int:
        """Return the status in the next response."""
        kind, body = self.receive()
        assert kind == 0x04, f"PDU of type {kind}"
        position = 6
        while position + 8 <= len(body):
            _, element, length = struct.unpack_from("<HHI", body, position)
            if element == 0x0900:
                return int.from_bytes(body[position + 8 : position + 10], "little")
            position += 8 + length
        pytest.fail("no status in the response")

    def release(self) -> int:
        """Release the association; return the kind of the answer."""
        self.send(pdu(0x05, bytes(4)))
        return self.receive()[0]


def threads_of_associations() -> list[str]:
    """Return the names of threads that serve associations."""
    return [thread.name for thread in threading.enumerate() if "AcceptorThread" in thread.name]


def process(command_line: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a peer in a process group of its own for the length of a fixture."""
    child = subprocess.Popen(
        command_line,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        yield child
    finally:
        kill_group(child)


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=10)


def free_port() -> int:
    """Return a port that was free a moment ago, for peers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Say whether something listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
