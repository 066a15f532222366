from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.finding import find_service
from dicom_node.ports import Caller, Decision
from dicom_node.retrieving import get_service, move_service
from dicom_node.scp import SCPConfig, StorageSCP
from tests.dicom_node.support import BytePeer, Heard, command, pdu, pdv, store_rq, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.inbox import Inbox
    from dicom_node.query import Query, StoredInstance

STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
EXPLICIT = str(ExplicitVRLittleEndian)
CT = str(CTImageStorage)


class Shelf:
    """A catalogue of a number of studies; an error if there is none."""

    def __init__(self, studies: int) -> None:
        self.studies = studies
        self.asked = 0

    def find(self, query: Query) -> list[dict[str, str]]:
        """Return the studies."""
        self.asked += 1
        if not self.studies:
            raise ConnectionError("the database is away")
        return [{"StudyInstanceUID": f"1.2.{n}"} for n in range(self.studies)][: query.limit or None]

    def count(self, query: Query) -> int:
        """Count."""
        return len(self.find(query))

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        """Return none."""
        del study_uid, series_uid, sop_uid
        return []


class Silent:
    """Takes note of no retrieval."""

    def on_retrieved(self, caller: Caller, destination: str, instances: Any, completed: int) -> None:
        """Do nothing."""


class Everything:
    """Lets everybody in, for everything."""

    def decide(self, caller: Caller) -> Decision:
        """Allow."""
        del caller
        return Decision(allowed=True, may_query=True)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(3)


@pytest.fixture
def served(inbox: Inbox, shelf: Shelf) -> Iterator[tuple[StorageSCP, int, Heard]]:
    """Run an SCP with queries and retrieval."""
    heard = Heard()
    services = [
        find_service(shelf, "CLOISTER"),
        get_service(shelf, Silent()),
        move_service(shelf, Silent(), lambda _: None, "CLOISTER"),
    ]
    config = SCPConfig("CLOISTER", network_timeout_s=5)
    scp = StorageSCP(config, inbox, Everything(), heard, services)
    yield scp, scp.start(), heard
    scp.stop()


def request(
    field: int, sop_class: str, *, message_id: int | None = 1, data_set: bool = True, **more: Any
) -> bytes:
    number = {} if message_id is None else {"message_id": (0x0110, struct.pack("<H", message_id))}
    return command(
        sop_class=(0x0002, sop_class.encode()),
        field=(0x0100, struct.pack("<H", field)),
        priority=(0x0700, struct.pack("<H", 0)),
        data_set=(0x0800, struct.pack("<H", 1 if data_set else 0x0101)),
        **number,
        **more,
    )


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


LEVEL = element(0x00080052, b"CS", b"STUDY ")


def ask(peer: BytePeer, identifier: bytes, message_id: int = 1) -> int:
    peer.send(pdu(0x04, pdv(1, 0x03, request(0x0020, STUDY_FIND, message_id=message_id))))
    peer.send(pdu(0x04, pdv(1, 0x02, identifier)))
    return final_status(peer)


def final_status(peer: BytePeer) -> int:
    """Return the status of the last response, passing over pending ones and their identifiers."""
    while True:
        kind, body = peer.receive()
        assert kind == 0x04, f"PDU of type {kind}"
        if body[5] & 1 == 0:
            continue
        status = int.from_bytes(body[body.index(struct.pack("<HHI", 0, 0x0900, 2)) + 8 :][:2], "little")
        if status not in {0xFF00, 0xFF01}:
            return status


@pytest.mark.parametrize(
    "identifier",
    [
        b"\xff" * 7,
        LEVEL[:-3],
        LEVEL + struct.pack("<HH2sHI", 0x0010, 0x0010, b"UN", 0, 0xFFFFFFF0),
        LEVEL + element(0x0020000D, b"UI", b"\xe9\xff"),
        element(0x00080052, b"CS", b"STUDY\\SERIES"),
        element(0x00080005, b"CS", b"NO SUCH ") + LEVEL + element(0x00100010, b"PN", b"a\x1b$)C\xff\xff"),
        b"".join(element(0x00090000 + n, b"LO", b"") for n in range(16, 250)) + LEVEL,
        LEVEL
        + struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 2000,
    ],
    ids=["noise", "cut", "too_long", "bytes", "levels", "charset", "many", "nested"],
)
def test_a_hostile_identifier_is_answered_and_the_next_one_served(
    served: tuple[StorageSCP, int, Heard], identifier: bytes
) -> None:
    with BytePeer(served[1]) as peer:
        assert peer.associate((STUDY_FIND, [EXPLICIT]))[0] == 0x02
        assert ask(peer, identifier) in {0xA900, 0xC000, 0x0000}
        assert ask(peer, LEVEL, 2) == 0x0000
        assert peer.release() == 0x06


def test_a_database_that_is_away_is_a_failure_and_no_empty_answer(
    served: tuple[StorageSCP, int, Heard], shelf: Shelf
) -> None:
    shelf.studies = 0
    with BytePeer(served[1]) as peer:
        peer.associate((STUDY_FIND, [EXPLICIT]))
        assert ask(peer, LEVEL) == 0xC000
        shelf.studies = 1
        assert ask(peer, LEVEL, 2) == 0x0000
    assert len(served[2].failed) == 1


def test_a_request_that_names_another_service_than_negotiated_is_aborted(
    served: tuple[StorageSCP, int, Heard], shelf: Shelf
) -> None:
    for context, field, named in (
        ((CT, [EXPLICIT]), 0x0020, STUDY_FIND),
        ((STUDY_FIND, [EXPLICIT]), 0x0020, CT),
        ((STUDY_FIND, [EXPLICIT]), 0x0021, STUDY_MOVE),
        ((CT, [EXPLICIT]), 0x0020, CT),
    ):
        with BytePeer(served[1]) as peer:
            peer.associate(context)
            peer.send(pdu(0x04, pdv(1, 0x03, request(field, named)) + pdv(1, 0x02, LEVEL)))
            assert peer.receive()[0] in {0x07, 0}
    assert shelf.asked == 0


def test_a_request_without_message_id_or_identifier_holds_nothing(
    served: tuple[StorageSCP, int, Heard],
) -> None:
    with BytePeer(served[1]) as peer:
        peer.associate((STUDY_FIND, [EXPLICIT]))
        peer.send(pdu(0x04, pdv(1, 0x03, request(0x0020, STUDY_FIND, data_set=False))))
        assert final_status(peer) == 0xA900
        no_id = request(0x0020, STUDY_FIND, message_id=None)
        peer.send(pdu(0x04, pdv(1, 0x03, no_id) + pdv(1, 0x02, LEVEL)))
        assert peer.receive()[0] in {0x07, 0}


def test_a_store_without_the_role_for_it_is_not_authorized(inbox: Inbox, shelf: Shelf) -> None:
    class QueryOnly:
        def decide(self, caller: Caller) -> Decision:
            del caller
            return Decision(allowed=True, may_store=False, may_query=True)

    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, QueryOnly(), Heard(), [get_service(shelf, Silent())])
    port = scp.start()
    role = struct.pack(">BBHH", 0x54, 0, len(CT) + 4, len(CT)) + CT.encode() + b"\x01\x01"
    with BytePeer(port) as peer:
        peer.send(with_user_item(role))
        assert peer.receive()[0] == 0x02
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CT, "1.2.3")) + pdv(1, 0x02, b"\0" * 8)))
        assert peer.status() == 0x0124
    scp.stop()
    assert inbox.count() == 0


def with_user_item(item: bytes) -> bytes:
    from tests.dicom_node.support import associate_rq  # noqa: PLC0415

    whole = associate_rq([(CT, [EXPLICIT])])
    start = whole.rindex(b"\x50\x00")
    user = whole[start + 4 :] + item
    return pdu(0x01, whole[6:start] + struct.pack(">BBH", 0x50, 0, len(user)) + user)


def test_a_peer_that_reads_no_answers_holds_no_place(
    served: tuple[StorageSCP, int, Heard], shelf: Shelf
) -> None:
    shelf.studies = 10_000
    scp, port, _ = served
    with BytePeer(port) as peer:
        peer.associate((STUDY_FIND, [EXPLICIT]))
        peer.send(pdu(0x04, pdv(1, 0x03, request(0x0020, STUDY_FIND)) + pdv(1, 0x02, LEVEL)))
        wait_until(lambda: shelf.asked == 1, "the query is answered")
    wait_until(lambda: scp.association_count == 0, "the association is over")


def test_requests_without_end_before_an_answer_are_aborted(served: tuple[StorageSCP, int, Heard]) -> None:
    with BytePeer(served[1]) as peer:
        peer.associate((STUDY_FIND, [EXPLICIT]))
        one = pdu(0x04, pdv(1, 0x03, request(0x0020, STUDY_FIND)) + pdv(1, 0x02, LEVEL))
        kinds = []
        try:
            peer.send(one * 500)
            while kind := peer.receive()[0]:
                kinds.append(kind)
        except OSError:
            return
        assert kinds[-1] == 0x07


def test_a_move_to_nobody_and_a_get_of_nothing_are_answered(
    served: tuple[StorageSCP, int, Heard],
) -> None:
    with BytePeer(served[1]) as peer:
        peer.associate((STUDY_MOVE, [EXPLICIT]))
        keys = LEVEL + element(0x0020000D, b"UI", b"1.2.")
        nowhere: dict[str, Any] = {"destination": (0x0600, b"NOBODY")}
        for more in ({}, nowhere):
            peer.send(pdu(0x04, pdv(1, 0x03, request(0x0021, STUDY_MOVE, **more)) + pdv(1, 0x02, keys)))
            assert final_status(peer) == 0xA801
