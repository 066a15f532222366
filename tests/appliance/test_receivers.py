"""Several receiver processes on one port."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydicom.uid import CTImageStorage
from sqlalchemy import select

from appliance import figures, health, node
from appliance.db.engine import reading, writing
from appliance.db.peers import Traffic
from appliance.peers import NewPeer, add_peer
from tests.appliance.test_receiving import Processes, succeeded
from tests.dicom_node.support import (
    DCMTK,
    BytePeer,
    ct,
    encoded,
    listening,
    pdu,
    pdv,
    program,
    save,
    store_rq,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings

RECEIVERS = 3
SENDERS = 12

pytestmark = [pytest.mark.e2e, pytest.mark.dcmtk]


@pytest.fixture
def limits() -> dict[str, Any]:
    """What the peer may take; none."""
    return {}


@pytest.fixture
def processes(
    make_node: Callable[..., Settings], tmp_path: Path, limits: dict[str, Any]
) -> Iterator[Processes]:
    settings = make_node(dicom={"port": 0, "min_free_mib": 1, "processes": RECEIVERS})
    config = tmp_path / "cloister.toml"
    config.write_text(
        f'name = "node"\ndata_root = "{settings.data_root}"\n'
        f"[dicom]\nport = 0\nmin_free_mib = 1\nprocesses = {RECEIVERS}\n",
        encoding="utf-8",
    )
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("pacs", "PACS", "127.0.0.0/8", may_send=True, **limits))
    zone.engine.dispose()
    group = Processes(settings, config)
    yield group
    group.stop()


def siblings(settings: Settings) -> list[int]:
    """Return the process numbers of the receivers beside the first that listen now."""
    beats = [health.last_beat(settings, f"scp_{number}") for number in range(1, RECEIVERS)]
    return [beat.pid for beat in beats if beat is not None and not beat.gone]


def all_listen(settings: Settings) -> bool:
    return len(siblings(settings)) == RECEIVERS - 1


def received(settings: Settings, name: str) -> int:
    beat = health.last_beat(settings, name)
    return int(beat.detail["received"]) if beat is not None else 0


def sender(port: int, files: list[Path]) -> subprocess.Popen[str]:
    command = [program(DCMTK / "storescu"), "-v", "-xe", "-aec", "CLOISTER", "-aet", "PACS"]
    return subprocess.Popen(
        [*command, "127.0.0.1", str(port), *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_receivers_share_a_port_and_the_inbox(processes: Processes, tmp_path: Path) -> None:
    files = [save(ct(size=64), tmp_path / f"{number:03d}.dcm") for number in range(SENDERS * 5)]
    first, settings = processes.start("scp"), processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    senders = [sender(processes.port(), files[number::SENDERS]) for number in range(SENDERS)]
    outputs = [one.communicate(timeout=60)[0] for one in senders]
    assert sum(len(succeeded(output, files)) for output in outputs) == len(files)
    assert sum(1 for _ in (settings.data_root / "clinical/inbox/entries").iterdir()) == len(files)
    wait_until(lambda: received(settings, "scp") == len(files), "the first one tells what all received")
    shares = [received(settings, f"scp_{number}") for number in range(1, RECEIVERS)]
    assert 0 < sum(shares) < len(files)

    first.terminate()
    assert first.wait(30) == 0
    assert siblings(settings) == []
    counted = figures.collected(figures.folder_of(settings))
    assert sum(counted["cloister_receive_seconds", ()][:-1]) == len(files)
    assert counted["cloister_receive_bytes", ()][-1] > len(files) * 64 * 64
    assert counted["cloister_associations_total", ("accepted",)] == [SENDERS]
    zone = node.open_clinical(settings)
    with reading(zone.engine) as session:
        assert [row.associations for row in session.scalars(select(Traffic))] == [SENDERS]
    zone.engine.dispose()


def test_a_receiver_that_is_killed_loses_nothing_it_answered_and_starts_again(
    processes: Processes, tmp_path: Path
) -> None:
    files = [save(ct(size=300), tmp_path / f"{number:03d}.dcm") for number in range(SENDERS * 20)]
    processes.start("scp")
    settings = processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    senders = [sender(processes.port(), files[number::SENDERS]) for number in range(SENDERS)]
    entries = settings.data_root / "clinical" / "inbox" / "entries"
    wait_until(lambda: sum(1 for _ in entries.iterdir()) >= SENDERS, "some instances arrived")
    killed = siblings(settings)[0]
    psutil.Process(killed).send_signal(signal.SIGKILL)
    outputs = [one.communicate(timeout=60)[0] for one in senders]
    promised = set.union(*(succeeded(output, files) for output in outputs))
    wait_until(lambda: all_listen(settings) and killed not in siblings(settings), "it starts again", 30)
    wait_until(lambda: not list((entries.parent / "incoming").rglob("*.dcm")), "what it left is settled")
    held = {path.read_bytes() for path in entries.iterdir()}
    assert len(held) >= len(promised) > 0
    for uid in promised:
        assert sum(uid.encode() in content for content in held) == 1


def test_receivers_end_with_the_first_one_however_it_ends(processes: Processes) -> None:
    first, settings = processes.start("scp"), processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    port = processes.port()
    psutil.Process(first.pid).send_signal(signal.SIGKILL)
    started = time.monotonic()
    wait_until(lambda: not listening(port), "nobody listens any longer")
    assert time.monotonic() - started < 10


def test_receivers_told_to_stop_finish_what_they_are_at(processes: Processes) -> None:
    first, settings = processes.start("scp"), processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    port, instances = processes.port(), [ct(size=64) for _ in range(SENDERS)]
    with ExitStack() as stack:
        peers = [stack.enter_context(BytePeer(port)) for _ in instances]
        for peer, ds in zip(peers, instances, strict=True):
            assert peer.associate()[0] == 0x02
            peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, ds.SOPInstanceUID))))
            peer.send(pdu(0x04, pdv(1, 0x00, encoded(ds)[:100])))
        first.terminate()
        wait_until(lambda: not listening(port), "nobody listens any longer")
        for peer, ds in zip(peers, instances, strict=True):
            peer.send(pdu(0x04, pdv(1, 0x02, encoded(ds)[100:])))
            assert peer.status() == 0
            assert peer.release() == 0x06
    assert first.wait(30) == 0
    entries = settings.data_root / "clinical" / "inbox" / "entries"
    assert sum(1 for _ in entries.iterdir()) == SENDERS


def connections(pid: int, port: int) -> int:
    """Return how many associations a receiver has."""
    open_now = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in open_now)


def fill(stack: ExitStack, port: int) -> list[BytePeer]:
    """Associate until there is no place for the peer any more."""
    peers: list[BytePeer] = []
    while True:
        peer = stack.enter_context(BytePeer(port))
        kind, body = peer.associate()
        if kind != 0x02:
            assert (kind, body[1:4]) == (0x03, bytes((2, 3, 2))), "transient, local limit exceeded"
            peer.socket.close()  # or it counts among the connections of who refused it
            return peers
        peers.append(peer)


@pytest.mark.parametrize("limits", [{"max_associations": 10}], ids=["ten"])
def test_a_peer_has_its_places_in_all_receivers_together_and_a_killed_one_gives_them_back(
    processes: Processes,
) -> None:
    processes.start("scp")
    settings = processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    port, (killed, *_) = processes.port(), siblings(settings)
    held = 0
    while not held:  # the kernel spreads connections by chance
        with ExitStack() as stack:
            assert len(fill(stack, port)) == 10
            held = connections(killed, port)
            if held:
                psutil.Process(killed).send_signal(signal.SIGKILL)
                psutil.Process(killed).wait(10)
                assert len(fill(stack, port)) == held
        wait_until(lambda: all(connections(pid, port) == 0 for pid in siblings(settings)), "all ended")


@pytest.mark.parametrize("limits", [{"max_instances_per_minute": 600}], ids=["ten a second"])
def test_a_peer_has_one_rate_in_all_receivers_together(processes: Processes, tmp_path: Path) -> None:
    """A burst of ten seconds' worth passes; by itself each receiver would let its share pass at once."""
    files = [save(ct(), tmp_path / f"{number:03d}.dcm") for number in range(140)]
    processes.start("scp")
    settings = processes.settings
    wait_until(lambda: all_listen(settings), "all receivers listen", 60)
    began = time.monotonic()
    senders = [sender(processes.port(), files[number::SENDERS]) for number in range(SENDERS)]
    outputs = [one.communicate(timeout=60)[0] for one in senders]
    assert time.monotonic() - began > 3.5
    assert sum(len(succeeded(output, files)) for output in outputs) == len(files)
    wait_until(lambda: received(settings, "scp") == len(files), "the first one tells what all received")
    assert 0 < sum(received(settings, f"scp_{number}") for number in range(1, RECEIVERS)) < len(files)
