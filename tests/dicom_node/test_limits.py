"""What one caller may take of the receiver."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage

from dicom_node.inbox import Inbox
from dicom_node.limits import LocalPlaces
from dicom_node.ports import Decision
from dicom_node.scp import SCPConfig, StorageSCP
from tests.dicom_node.support import BytePeer, Heard, ct, encoded, pdu, pdv, start_scp, store_rq, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.ports import Caller
    from tests.dicom_node.support import RunningSCP


@dataclass
class Bounded:
    """Allows everybody, with limits."""

    decision: Decision

    def decide(self, caller: Caller) -> Decision:
        del caller
        return self.decision


@pytest.fixture
def scp(tmp_path: Path) -> Iterator[RunningSCP]:
    decision = Decision(allowed=True, max_associations=2, max_instances_per_minute=60)
    running = start_scp(Inbox(tmp_path / "inbox", min_free_bytes=0), Bounded(decision))
    yield running
    running.scp.stop()


def test_a_caller_has_no_more_associations_than_it_may(scp: RunningSCP) -> None:
    with BytePeer(scp.port) as first, BytePeer(scp.port) as second, BytePeer(scp.port) as third:
        assert first.associate()[0] == 0x02
        assert second.associate()[0] == 0x02
        kind, body = third.associate()
        assert (kind, body[1:4]) == (0x03, bytes((2, 3, 2))), "transient, local limit exceeded"
        with BytePeer(scp.port) as other:
            assert other.associate(calling="OTHER")[0] == 0x02
        assert first.release() == 0x06
    assert scp.heard.rejected[0][1] == "too_many_of_this_caller"

    def again() -> bool:
        with BytePeer(scp.port) as fourth:
            return fourth.associate()[0] == 0x02

    wait_until(again, "a place that was given back is used")


def test_a_caller_that_sends_too_fast_waits_and_loses_nothing(scp: RunningSCP) -> None:
    began = time.monotonic()
    with BytePeer(scp.port) as peer:
        peer.associate()
        for _ in range(13):
            ds = ct()
            assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0
        assert peer.release() == 0x06
    assert time.monotonic() - began > 2.5
    assert scp.inbox.count() == 13


def test_stopping_ends_the_wait(tmp_path: Path) -> None:
    decision = Decision(allowed=True, max_instances_per_minute=1)
    running = start_scp(Inbox(tmp_path / "inbox", min_free_bytes=0), Bounded(decision))
    with BytePeer(running.port) as peer:
        peer.associate()
        ds = ct()
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3"))))
        began = time.monotonic()
        running.scp.stop()
        assert time.monotonic() - began < 5


class Broken(LocalPlaces):
    """Places that fail when they are told to."""

    fails = False

    def enter(self, title: str, max_of_caller: int, max_in_all: int) -> int:
        if self.fails:
            raise OSError("planted")
        return super().enter(title, max_of_caller, max_in_all)

    def pause_s(self, title: str, per_minute: int) -> float:
        if self.fails:
            raise OSError("planted")
        return super().pause_s(title, per_minute)


def test_where_nothing_can_be_counted_nothing_comes_in_for_now(tmp_path: Path) -> None:
    heard, places = Heard(), Broken()
    policy = Bounded(Decision(allowed=True, max_instances_per_minute=60))
    inbox = Inbox(tmp_path / "inbox", min_free_bytes=0)
    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, policy, heard, (), places)
    port = scp.start()
    ds = ct()
    with BytePeer(port) as peer, BytePeer(port) as other:
        assert peer.associate()[0] == 0x02
        places.fails = True
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0xA700
        kind, body = other.associate()
        assert (kind, body[1:4]) == (0x03, bytes((2, 1, 1))), "transient, no reason given"
        places.fails = False
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0
        assert peer.release() == 0x06
    scp.stop()
    assert (inbox.count(), [str(error) for _, error in heard.failed]) == (1, ["planted", "planted"])
