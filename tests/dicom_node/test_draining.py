"""A receiver that ends lets associations finish what they are at."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage

from dicom_node.inbox import Inbox
from tests.dicom_node.support import (
    BytePeer,
    ct,
    encoded,
    listening,
    pdu,
    pdv,
    start_scp,
    store_rq,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.dicom_node.support import RunningSCP


@pytest.fixture
def scp(tmp_path: Path) -> Iterator[RunningSCP]:
    running = start_scp(Inbox(tmp_path / "inbox", min_free_bytes=0))
    yield running
    running.scp.stop()


class Ending(threading.Thread):
    """Stops a receiver in the background."""

    def __init__(self, scp: RunningSCP, drain_s: float) -> None:
        super().__init__(daemon=True)
        self._scp, self._drain_s = scp, drain_s
        self.start()

    def run(self) -> None:
        self._scp.scp.stop(grace_s=2, drain_s=self._drain_s)


def begin(peer: BytePeer, content: bytes, uid: str) -> None:
    """Send a request and the first part of its data set."""
    peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, uid))))
    peer.send(pdu(0x04, pdv(1, 0x00, content[:100])))


def test_an_instance_on_its_way_and_the_next_are_stored_before_the_end(scp: RunningSCP) -> None:
    first, second = ct(size=8), ct(size=8)
    content = encoded(first)
    with BytePeer(scp.port) as peer:
        peer.associate()
        begin(peer, content, first.SOPInstanceUID)
        ending = Ending(scp, 20)
        wait_until(lambda: not listening(scp.port), "nobody may connect any more")
        time.sleep(1.5)  # longer than an association between two messages is left alone
        peer.send(pdu(0x04, pdv(1, 0x02, content[100:])))
        assert peer.status() == 0
        assert peer.store(encoded(second), CTImageStorage, second.SOPInstanceUID, 2) == 0
        assert peer.release() == 0x06
    ending.join(20)
    assert not ending.is_alive(), "it waits for nobody"
    held = {entry.sop_instance_uid for entry in scp.inbox.entries(10)}
    assert held == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_an_association_between_two_messages_is_aborted_at_once(scp: RunningSCP) -> None:
    with BytePeer(scp.port) as peer:
        peer.associate()
        ds = ct(size=8)
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0
        ending = Ending(scp, 60)
        assert peer.receive()[0] == 0x07
    ending.join(20)
    assert not ending.is_alive()


def test_who_does_not_finish_in_time_is_aborted_and_leaves_nothing(scp: RunningSCP) -> None:
    ds = ct(size=8)
    with BytePeer(scp.port) as peer:
        peer.associate()
        begin(peer, encoded(ds), ds.SOPInstanceUID)
        wait_until(lambda: any(scp.inbox.incoming.iterdir()), "the instance began")
        ending = Ending(scp, 1.5)
        kind, _ = peer.receive()
        assert kind in {0x07, 0}, "an abort, or the end of the connection"
    ending.join(20)
    assert not ending.is_alive()
    wait_until(lambda: not any(scp.inbox.incoming.iterdir()), "what was half there is gone")
    assert scp.inbox.count() == 0
