"""The receiving process when the machine fails it: no power, a slow or read-only disk, a huge instance."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage

from appliance import node
from appliance.db.engine import writing
from appliance.peers import NewPeer, add_peer
from dicom_node import part10
from dicom_node.inbox import Inbox
from tests.appliance.test_receiving import Processes, succeeded
from tests.dicom_node.support import (
    DCMTK,
    BytePeer,
    ct,
    dcmtk,
    encoded,
    pdu,
    pdv,
    program,
    save,
    store_rq,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.settings import Settings

SHIM = Path(__file__).resolve().parents[1] / "dicom_node" / "power.c"
MIB = 1 << 20
NOT_STORED = "Received Store Response (Unknown Status: 0x110)"

pytestmark = [pytest.mark.e2e, pytest.mark.dcmtk]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the library that stands between a process and the disk."""
    library = tmp_path_factory.mktemp("shim") / "power.so"
    compiler = str(program(Path("/usr/bin/cc")))
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture
def processes(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[Processes]:
    yield from running(make_node(dicom={"port": 0, "min_free_mib": 1}), tmp_path)


def running(settings: Settings, folder: Path) -> Iterator[Processes]:
    config = folder / "cloister.toml"
    config.write_text(
        f'name = "node"\ndata_root = "{settings.data_root}"\n[dicom]\nport = 0\nmin_free_mib = 1\n',
        encoding="utf-8",
    )
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("pacs", "PACS", "127.0.0.0/8", may_send=True))
    zone.engine.dispose()
    group = Processes(settings, config)
    yield group
    group.stop()


def inbox_of(processes: Processes) -> Path:
    return processes.settings.data_root / "clinical" / "inbox"


def sender(processes: Processes, files: list[Path]) -> subprocess.Popen[str]:
    command = [program(DCMTK / "storescu"), "-v", "-xe", "-aec", "CLOISTER", "-aet", "PACS"]
    return subprocess.Popen(
        [*command, "127.0.0.1", str(processes.port()), *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_power_loss_takes_nothing_that_was_answered(
    processes: Processes, shim: str, tmp_path: Path
) -> None:
    """What was not synchronised is gone: bytes, names, and renames that no journal had written."""
    files = [save(ct(size=120), tmp_path / f"{number:03d}.dcm") for number in range(240)]
    shadow = tmp_path / "shadow"
    for folder in (".blobs", "incoming/scp", "entries", "quarantine"):
        (shadow / folder).mkdir(parents=True)
    # Each wait for the disk takes 20 ms: whenever the power fails, something is under way.
    shimmed = {"LD_PRELOAD": shim, "POWER_FROM": str(inbox_of(processes)), "POWER_TO": str(shadow)}
    scp = processes.start("scp", **shimmed, POWER_DELAY_MS="20")
    senders = [sender(processes, files[number::4]) for number in range(4)]
    entries = inbox_of(processes) / "entries"
    wait_until(lambda: sum(1 for _ in entries.iterdir()) >= 60, "some instances arrived")
    os.killpg(scp.pid, signal.SIGKILL)
    outputs = [one.communicate(timeout=60)[0] for one in senders]
    promised = set.union(*(succeeded(output, files) for output in outputs))
    assert 40 < len(promised) < len(files)

    unsettled = [path.stem for path in (shadow / "incoming" / "scp").glob("*.dcm")]
    assert unsettled, "the last renames were in no journal"
    inbox = Inbox(shadow, min_free_bytes=0)
    inbox.recover()
    listing = inbox.listing(1000)
    assert listing.damaged == []
    assert promised <= {entry.sop_instance_uid for entry in listing.entries}
    for entry in listing.entries:
        content = entry.path.read_bytes()
        data = content[part10.decode(content).data_offset :]
        assert hashlib.sha256(data).hexdigest() == entry.sha256
    inbox.release()


def test_a_slow_disk_slows_its_own_senders_alone(processes: Processes, shim: str, tmp_path: Path) -> None:
    files = [save(ct(), tmp_path / f"{number}.dcm") for number in range(3)]
    processes.start("scp", LD_PRELOAD=shim, POWER_DELAY_MS="700")
    slow = sender(processes, files)
    wait_until(
        lambda: list((inbox_of(processes) / "incoming").rglob("*.dcm")), "an instance waits for the disk"
    )
    began = time.monotonic()
    dcmtk("echoscu", "-aec", "CLOISTER", "-aet", "PACS", "127.0.0.1", str(processes.port()))
    assert time.monotonic() - began < 2.0, "an echo waits for no disk"
    output, _ = slow.communicate(timeout=60)
    assert len(succeeded(output, files)) == 3


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test makes read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=200m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["/usr/bin/umount", "-l", str(folder)], check=True)


def test_a_disk_that_becomes_read_only_is_answered_and_survived(
    make_node: Callable[..., Settings], mounted: Path, tmp_path: Path
) -> None:
    settings = make_node(dicom={"port": 0, "min_free_mib": 1})
    inbox = settings.data_root / "clinical" / "inbox"
    inbox.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["/usr/bin/mount", "--bind", str(mounted), str(inbox)], check=True)
    try:
        for group in running(settings, tmp_path):
            group.start("scp")
            one = save(ct(), tmp_path / "one.dcm")
            assert succeeded(sender(group, [one]).communicate(timeout=60)[0], [one])
            subprocess.run(["/usr/bin/mount", "-o", "remount,ro,bind", str(inbox)], check=True)
            output, _ = sender(group, [one]).communicate(timeout=60)
            assert NOT_STORED in output
            subprocess.run(["/usr/bin/mount", "-o", "remount,rw,bind", str(inbox)], check=True)
            assert succeeded(sender(group, [one]).communicate(timeout=60)[0], [one])
            assert len(list((inbox / "entries").iterdir())) == 2
            assert list((inbox / "incoming").rglob("*.dcm")) == []
    finally:
        subprocess.run(["/usr/bin/umount", "-l", str(inbox)], check=True)


def encapsulated(fragments: int) -> Iterator[bytes]:
    """Return a data set of many frames of 4 MiB each, piece by piece."""
    ds = ct(size=16, NumberOfFrames=fragments)
    del ds.PixelData
    yield encoded(ds)
    yield struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0
    )
    piece = os.urandom(MIB // 16)
    for _ in range(fragments):
        yield struct.pack("<HHI", 0xFFFE, 0xE000, 4 * MIB)
        for _ in range(64):
            yield piece
    yield struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.mark.slow
def test_an_instance_of_more_than_a_gigabyte_needs_no_memory(processes: Processes) -> None:
    scp = processes.start("scp")
    digest, size = hashlib.sha256(), 0
    with BytePeer(processes.port()) as peer:
        peer.socket.settimeout(60)
        peer.associate((CTImageStorage, ["1.2.840.10008.1.2.4.70"]), calling="PACS", called="CLOISTER")
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3.4.5"))))
        for piece in encapsulated(300):
            digest.update(piece)
            size += len(piece)
            peer.send(pdu(0x04, pdv(1, 0x00, piece)))
        peer.send(pdu(0x04, pdv(1, 0x02, b"")))
        assert peer.status() == 0
    (entry,) = Inbox(inbox_of(processes), min_free_bytes=0).entries(2)
    assert (entry.sha256, entry.size_bytes) == (digest.hexdigest(), size)
    assert size > 1200 * MIB
    facts = Path(f"/proc/{scp.pid}/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(int(line.split()[1]) for line in facts if line.startswith("VmHWM:"))
    assert peak_kib < 200 * 1024
