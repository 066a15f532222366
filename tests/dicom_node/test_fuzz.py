"""Hostile bytes on the SCP's port: recorded conversations, changed at random, leave it serving."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.dicom_node.support import BytePeer, associate_rq, ct, encoded, pdu, pdv, store_rq, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.dicom_node.support import RunningSCP

CONVERSATIONS = 240
FOR_S = 40.0
LENGTHS = (0, 1, 5, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)

Conversation = list[bytes]


def conversations() -> list[Conversation]:
    """Return what well-behaved peers send: an echo, a store, two stores in pieces, a release, an abort."""
    ds = ct(size=8)
    data, uid = encoded(ds), str(ds.SOPInstanceUID)
    contexts = [(str(uid), [str(ExplicitVRLittleEndian)]) for uid in (CTImageStorage, "1.2.840.10008.1.1")]
    asked = associate_rq(contexts)
    command = pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, uid)))
    pieces = [pdu(0x04, pdv(1, 0x00, data[at : at + 100])) for at in range(0, len(data), 100)]
    last = pdu(0x04, pdv(1, 0x02, b""))
    together = pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, uid)) + pdv(1, 0x02, data))
    release, abort = pdu(0x05, bytes(4)), pdu(0x07, bytes(4))
    return [
        [asked, release],
        [asked, command, *pieces, last, release],
        [asked, together, together, release],
        [asked, command, *pieces[:2], abort],
        [asked, pdu(0x04, pdv(3, 0x03, _echo_rq())), release],
    ]


def _echo_rq() -> bytes:
    body = b""
    verification = b"1.2.840.10008.1.1\0"
    for element, value in ((2, verification), (0x0100, b"\x30\0"), (0x0110, b"\1\0"), (0x0800, b"\1\1")):
        body += struct.pack("<HHI", 0, element, len(value)) + value
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def changed(conversation: Conversation, chance: random.Random) -> Conversation:
    """Change a conversation in one to four places."""
    messages = [bytearray(message) for message in conversation]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(messages))
        _change(messages, at, chance)
        if not messages:
            return []
    return [bytes(message) for message in messages]


def _change(messages: list[bytearray], at: int, chance: random.Random) -> None:
    message = messages[at]
    kind = chance.randrange(8)
    if kind == 0 and message:
        message[chance.randrange(len(message))] ^= 1 << chance.randrange(8)
    elif kind == 1 and len(message) >= 6:
        struct.pack_into(">I", message, 2, chance.choice(LENGTHS))
    elif kind == 2 and len(message) >= 10:
        offset = chance.randrange(len(message) - 4)
        struct.pack_into(">I", message, offset, chance.choice(LENGTHS))
    elif kind == 3:
        del message[chance.randrange(len(message) + 1) :]
    elif kind == 4:
        messages.insert(at, bytearray(message))
    elif kind == 5:
        messages.pop(at)
    elif kind == 6:
        messages.insert(at, bytearray(chance.randbytes(chance.randint(1, 300))))
    else:
        chance.shuffle(messages)


def speak(port: int, conversation: Conversation, chance: random.Random) -> None:
    """Say it, in pieces, without waiting for answers for long; then leave, politely or not."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.settimeout(0.02)
        for message in conversation:
            cut = chance.randrange(len(message) + 1)
            peer.sendall(message[:cut])
            peer.sendall(message[cut:])
            with contextlib.suppress(TimeoutError):
                peer.recv(4096)
        if chance.random() < 0.3:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.slow
def test_changed_conversations_leave_it_serving_and_nothing_half_stored(
    run_scp: Callable[..., RunningSCP],
) -> None:
    scp = run_scp(network_timeout_s=1, association_timeout_s=1, max_associations=20)
    chance = random.Random(3)  # noqa: S311 - the same changes each time
    spoken, until = 0, time.monotonic() + FOR_S
    known = conversations()
    while spoken < CONVERSATIONS and time.monotonic() < until:
        group = [changed(chance.choice(known), chance) for _ in range(8)]
        seeds = [random.Random(chance.random()) for _ in group]  # noqa: S311 - as above
        speakers = [
            threading.Thread(target=speak, args=(scp.port, *one)) for one in zip(group, seeds, strict=True)
        ]
        for speaker in speakers:
            speaker.start()
        for speaker in speakers:
            speaker.join(30)
            assert not speaker.is_alive()
        spoken += len(group)
    assert spoken >= CONVERSATIONS // 4
    wait_until(lambda: scp.scp.association_count == 0, "all associations ended", 30)
    with BytePeer(scp.port) as peer:
        assert peer.associate()[0] == 0x02
        ds = ct()
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == 0
        assert peer.release() == 0x06
    assert list(scp.inbox.incoming.iterdir()) == []
    assert scp.inbox.listing(10_000).damaged == []
    assert scp.heard.failed == []
