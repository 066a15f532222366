"""What a requestor may negotiate beside presentation contexts (PS3.7 annex D.3.3), byte by byte."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from tests.dicom_node.support import (
    BytePeer,
    associate_rq,
    command,
    ct,
    dcmtk,
    encoded,
    item,
    pdu,
    pdv,
    save,
    store_rq,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.dicom_node.support import RunningSCP

CT = str(CTImageStorage)
ECHO = "1.2.840.10008.1.1"
SYNTAX = [str(ExplicitVRLittleEndian)]
ABORT, RELEASED, ACCEPTED = 0x07, 0x06, 0x02
# Sub-items of the user information item.
WINDOW, ROLE, EXTENDED, COMMON_EXTENDED, IDENTITY = 0x53, 0x54, 0x56, 0x57, 0x58


def field(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def role(scu: int, scp: int, uid: str = CT) -> bytes:
    return item(ROLE, field(uid.encode()) + bytes((scu, scp)))


def window(invoked: int, performed: int) -> bytes:
    return item(WINDOW, struct.pack(">HH", invoked, performed))


def identity(kind: int, *, asks: bool, first: bytes = b"radiographer", second: bytes = b"secret") -> bytes:
    return item(IDENTITY, bytes((kind, asks)) + field(first) + field(second))


def answered(body: bytes) -> tuple[list[int], set[int]]:
    """Return the results of the contexts and the kinds of user information in an A-ASSOCIATE-AC."""
    results, user = [], set()
    for kind, value in items(body[68:]):
        if kind == 0x21:
            results.append(value[2])
        elif kind == 0x50:
            user = {kind for kind, _ in items(value)}
    return results, user


def items(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        kind, _, length = struct.unpack_from(">BBH", data)
        yield kind, data[4 : 4 + length]
        data = data[4 + length :]


def negotiated(scp: RunningSCP, user: bytes = b"", more: bytes = b"") -> set[int]:
    """Propose CT with further items, store an instance, release; return what was answered beside."""
    with BytePeer(scp.port) as peer:
        kind, body = peer.associate((CT, SYNTAX), user=user, more=more)
        assert kind == ACCEPTED
        results, kinds = answered(body)
        assert results == [0]
        ds = ct()
        before = scp.inbox.count()
        assert peer.store(encoded(ds), CT, ds.SOPInstanceUID) == 0
        assert scp.inbox.count() == before + 1
        assert scp.heard.received[-1].path.read_bytes().endswith(encoded(ds))
        assert peer.release() == RELEASED
    return kinds


@pytest.mark.parametrize(
    "user",
    [
        role(1, 0),
        role(1, 1),
        role(0, 1),
        role(0, 0),
        role(1, 1) + role(1, 0),
        role(1, 1, str(MRImageStorage)),
        role(1, 0, "1.2.3"),
    ],
    ids=["scu", "both", "scp", "none", "twice", "not proposed", "private"],
)
def test_without_a_service_that_sends_roles_stay_those_of_default(scp: RunningSCP, user: bytes) -> None:
    """No answer to a proposed role means the default ones (PS3.7 D.3.3.4): the requestor is the SCU."""
    assert ROLE not in negotiated(scp, user)


@pytest.mark.parametrize(
    "user",
    [role(2, 7), item(ROLE, b"\0\1"), item(ROLE, struct.pack(">H", 500) + b"1.2\1\0")],
    ids=["values", "short", "length"],
)
def test_a_role_that_cannot_be_read_ends_the_association_alone(scp: RunningSCP, user: bytes) -> None:
    with BytePeer(scp.port) as peer:
        assert peer.associate(user=user)[0] == ABORT
    negotiated(scp)


@pytest.mark.parametrize(
    "user", [window(0, 0), window(1, 1), window(8, 2), window(8, 8) * 2, item(WINDOW, b"\0")]
)
def test_a_window_of_operations_is_not_answered(scp: RunningSCP, user: bytes) -> None:
    """Without an answer there is one operation at a time (PS3.7 D.3.3.3)."""
    assert WINDOW not in negotiated(scp, user)


@pytest.mark.parametrize("asks", [False, True], ids=["silent", "asks for an answer"])
@pytest.mark.parametrize("kind", range(8))
def test_an_identity_is_neither_checked_nor_confirmed(scp: RunningSCP, kind: int, *, asks: bool) -> None:
    """Who does not support it accepts without a response (PS3.7 D.3.3.7)."""
    assert negotiated(scp, identity(kind, asks=asks)) <= {0x51, 0x52, 0x55}


@pytest.mark.parametrize(
    "user",
    [
        item(IDENTITY, b"\1\1" + field(b"x")),
        item(IDENTITY, b""),
        identity(2, asks=True, first=b"", second=b""),
        identity(5, asks=True, first=bytes(range(256)) * 200, second=b""),
        identity(1, asks=True) * 3,
    ],
    ids=["no second field", "empty", "empty fields", "long", "three"],
)
def test_a_strange_identity_breaks_nothing(scp: RunningSCP, user: bytes) -> None:
    assert IDENTITY + 1 not in negotiated(scp, user)


@pytest.mark.dcmtk
def test_dcmtk_stores_with_a_user_name_and_password(scp: RunningSCP, tmp_path: Path) -> None:
    to = ["-aec", "CLOISTER", "-usr", "radiographer", "-pwd", "secret", "127.0.0.1", str(scp.port)]
    dcmtk("storescu", *to, save(ct(), tmp_path / "a.dcm"))
    assert scp.inbox.count() == 1


@pytest.mark.parametrize(
    "user",
    [
        item(EXTENDED, field(CT.encode()) + b"\x02\x00\x00\x00\x00\x00"),
        item(EXTENDED, field(CT.encode()) + b"\x02\x01\x03\x01\x01\x00") * 2,
        item(EXTENDED, field(CT.encode())),
        item(EXTENDED, b"\xff\xff"),
        item(COMMON_EXTENDED, field(CT.encode()) + field(b"1.2.840.10008.4.2") + field(b"")),
        item(COMMON_EXTENDED, field(b"1.2.3") + field(b"1.2.840.10008.4.2") + field(field(CT.encode()))),
        item(COMMON_EXTENDED, b""),
    ],
    ids=["storage", "twice", "no information", "length", "common", "related", "empty"],
)
def test_extended_negotiation_is_not_answered(scp: RunningSCP, user: bytes) -> None:
    assert negotiated(scp, user) <= {0x51, 0x52, 0x55}


@pytest.mark.parametrize(
    ("user", "more"),
    [
        (item(0x5A, b"abc"), b""),
        (item(0xFF, b""), b""),
        (item(0x59, field(b"")), b""),
        (item(0x55, b"N" * 40), b""),
        (item(0x55, "Größe".encode()), b""),
        (b"", item(0x99, bytes(500))),
        (b"", item(0x21, b"\1\0\0\0") + item(0x30, b"1.2")),
    ],
    ids=["unknown", "last", "response", "long version", "version of letters", "item", "misplaced"],
)
def test_items_that_are_unknown_or_out_of_place_are_ignored(
    scp: RunningSCP, user: bytes, more: bytes
) -> None:
    negotiated(scp, user, more)


def test_an_unknown_sub_item_of_a_context_is_ignored(scp: RunningSCP) -> None:
    asked = associate_rq([(CT, SYNTAX)])
    at = asked.index(item(0x30, CT.encode()))
    context = b"\1\0\0\0" + item(0x31, b"new") + asked[at : at + len(item(0x30, CT.encode()))]
    context += item(0x40, SYNTAX[0].encode()) + item(0x41, b"")
    variable = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context)
    variable += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    with BytePeer(scp.port) as peer:
        peer.send(pdu(0x01, asked[6:74] + variable))
        kind, body = peer.receive()
        assert (kind, answered(body)[0]) == (ACCEPTED, [0])


def context(number: int, *sub_items: bytes) -> bytes:
    return item(0x20, bytes((number, 0, 0, 0)) + b"".join(sub_items))


ABSTRACT, TRANSFER = item(0x30, CT.encode()), item(0x40, SYNTAX[0].encode())


@pytest.mark.parametrize(
    "tail",
    [
        b"\x50",
        b"\x50\x00\xff\xff",
        item(0x50, b"\x51\x00\x00\x09abc"),
        item(0x20, b"\1"),
        context(3),
        context(3, ABSTRACT),
        context(3, TRANSFER),
        context(3, ABSTRACT, item(0x40, b"")),
        context(3, item(0x30, b""), TRANSFER),
        context(4, ABSTRACT, TRANSFER),
        context(3, item(0x30, b"1." * 50), TRANSFER),
        context(3, item(0x30, b"\xff\xfe"), TRANSFER),
        item(0x50, item(0x52, b"1." * 50)),
        item(0x50, role(1, 1, "1." * 50)),
        item(0x10, b"\xff"),
    ],
    ids=[
        *("no length", "longer than all", "sub-item", "short context", "empty context", "no transfer syntax"),
        *("no abstract syntax", "empty transfer syntax", "empty abstract syntax", "even context id"),
        *("long abstract syntax", "abstract syntax of no digits", "long implementation class"),
        *("long class of a role", "application context of no digits"),
    ],
)
def test_a_request_that_is_none_is_aborted_and_frees_its_place(
    run_scp: Callable[..., RunningSCP], tail: bytes
) -> None:
    scp = run_scp(association_timeout_s=30)
    with BytePeer(scp.port) as peer:
        peer.send(pdu(0x01, associate_rq([(CT, SYNTAX)])[6:] + tail))
        assert peer.receive()[0] == ABORT
    wait_until(lambda: scp.scp.association_count == 0, "the place is free", 60)
    negotiated(scp)
    assert scp.heard.failed == []


def test_an_association_whose_thread_fails_is_ended_and_told(
    scp: RunningSCP, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise LookupError("planted")

    with monkeypatch.context() as planted, BytePeer(scp.port) as peer:
        planted.setattr("pynetdicom.acse.negotiate_as_acceptor", fails)
        assert peer.associate()[0] == ABORT
    wait_until(lambda: scp.scp.association_count == 0, "the place is free")
    ((caller, error),) = scp.heard.failed
    assert (caller.calling_ae_title, str(error)) == ("PACS", "planted")
    negotiated(scp)


def test_a_request_that_stops_half_way_frees_its_place_at_once(run_scp: Callable[..., RunningSCP]) -> None:
    scp = run_scp(network_timeout_s=1, association_timeout_s=30)
    began = time.monotonic()
    with BytePeer(scp.port) as stalls, BytePeer(scp.port) as leaves:
        for peer in (stalls, leaves):
            peer.send(associate_rq([(CT, SYNTAX)])[:-10])
        leaves.socket.close()
        wait_until(lambda: scp.scp.association_count == 0, "both places are free")
    assert time.monotonic() - began < 10


def store(message_id: int, uid: str, context: int = 1, data: bytes = b"") -> bytes:
    data = data or encoded(ct(SOPInstanceUID=uid))
    return pdu(0x04, pdv(context, 0x03, store_rq(CT, uid, message_id)) + pdv(context, 0x02, data))


def echo(message_id: int) -> bytes:
    return pdu(
        0x04,
        pdv(
            3,
            0x03,
            command(
                sop_class=(0x0002, ECHO.encode()),
                field=(0x0100, b"\x30\0"),
                message_id=(0x0110, struct.pack("<H", message_id)),
                data_set=(0x0800, b"\x01\x01"),
            ),
        ),
    )


def answer(peer: BytePeer) -> tuple[int, int]:
    """Return message id and status of the next response."""
    kind, body = peer.receive()
    assert kind == 0x04
    values, at = {}, 6
    while at + 8 <= len(body):
        _, element, length = struct.unpack_from("<HHI", body, at)
        values[element] = int.from_bytes(body[at + 8 : at + 8 + length], "little")
        at += 8 + length
    return values[0x0120], values[0x0900]


def hurried(scp: RunningSCP) -> BytePeer:
    """Associate as one that would send up to eight requests before an answer."""
    peer = BytePeer(scp.port)
    assert peer.associate((CT, SYNTAX), (ECHO, SYNTAX), user=window(8, 8))[0] == ACCEPTED
    return peer


def test_stores_that_do_not_wait_for_answers_are_served_in_their_order(scp: RunningSCP) -> None:
    with hurried(scp) as peer:
        peer.send(b"".join(store(number, f"1.2.{number}") for number in range(1, 9)))
        assert [answer(peer) for _ in range(8)] == [(number, 0) for number in range(1, 9)]
        assert peer.release() == RELEASED
    assert [entry.sop_instance_uid for entry in scp.heard.received] == [f"1.2.{n}" for n in range(1, 9)]
    for entry in scp.heard.received:
        assert entry.path.read_bytes().endswith(encoded(ct(SOPInstanceUID=entry.sop_instance_uid))[-512:])


def test_other_requests_between_stores_are_served_too(scp: RunningSCP) -> None:
    with hurried(scp) as peer:
        peer.send(echo(1) + store(2, "1.2.2") + echo(3) + store(4, "1.2.4"))
        assert sorted(answer(peer) for _ in range(4)) == [(number, 0) for number in range(1, 5)]
        assert peer.release() == RELEASED
    assert scp.inbox.count() == 2


def test_a_flood_of_requests_ends_its_association_alone(scp: RunningSCP) -> None:
    with hurried(scp) as peer:
        peer.send(b"".join(echo(number % 65536) for number in range(300)))
        kinds = [peer.receive()[0]]
        while kinds[-1] == 0x04:
            kinds.append(peer.receive()[0])
        assert kinds[-1] in {ABORT, 0}
    negotiated(scp)


DATA = encoded(ct())
HALF = pdu(0x04, pdv(1, 0x03, store_rq(CT, "1.2.1", 1))) + pdu(0x04, pdv(1, 0x00, DATA[:100]))


@pytest.mark.parametrize(
    "sent",
    [
        HALF + echo(2),
        HALF + store(2, "1.2.2"),
        HALF + pdu(0x04, pdv(3, 0x02, DATA[100:])),
        HALF + pdu(0x05, bytes(4)),
    ],
    ids=["another request", "another instance", "another context", "a release"],
)
def test_messages_that_are_interleaved_store_nothing(scp: RunningSCP, sent: bytes) -> None:
    """PS3.7 and PS3.8 let messages of one association follow each other, not mingle."""
    with hurried(scp) as peer:
        peer.send(sent)
        assert peer.receive()[0] in {ABORT, RELEASED}
    wait_until(lambda: scp.scp.association_count == 0, "the association ended")
    assert scp.inbox.count() == 0
    assert list(scp.inbox.incoming.iterdir()) == []
    negotiated(scp)
