from __future__ import annotations

import gzip
import random
import resource
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from dicom_node import part10
from dicom_node.dicomweb import stow
from dicom_node.inbox import Inbox
from dicom_node.index import read_header
from dicom_node.ports import Caller
from dicom_node.sop_classes import StorageClasses
from tests.dicom_node.dicomweb.server import BOUNDARY, STOW, frame, instance, message, part, served
from tests.dicom_node.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILED, STORED, OTHERS = "00081198", "00081199", "0008119A"
END = f"--{BOUNDARY}--\r\n".encode()


@dataclass
class Service:
    url: str
    inbox: Inbox
    failures: list[Exception]
    counted: list[tuple[int, int]]

    def post(self, content: Any, path: str = "/studies", **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", content=content, headers={**STOW, **headers}, timeout=30)

    def is_clean(self) -> bool:
        return not [path for path in self.inbox.incoming.rglob("*") if path.is_file()]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    inbox = Inbox(tmp_path / "inbox", min_free_bytes=1, max_instance_bytes=400 << 20)
    failures: list[Exception] = []
    counted: list[tuple[int, int]] = []
    reception = stow.Reception(
        inbox=inbox,
        caller_of=lambda _: Caller("VIEWER", "CLOISTER", "127.0.0.1"),
        on_stored=lambda _, stored, refused: counted.append((stored, refused)),
        max_requests=2,
        timeout_s=2,
    )
    app = FastAPI()
    app.include_router(stow.router(frame(failures), reception))
    with served(app) as url:
        yield Service(url, inbox, failures, counted)
    assert failures == []


def data_set(file: bytes) -> bytes:
    return file[part10.decode(file).data_offset :]


def reasons(answer: httpx.Response, sequence: str = FAILED) -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.json()[sequence]["Value"]]


def test_instances_are_stored_byte_for_byte(service: Service, tmp_path: Path) -> None:
    files = [instance(tmp_path, number) for number in (1, 2, 3)]
    answer = service.post(message(files), "/studies/1.2.1")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    entries = service.inbox.entries(10)
    assert [data_set(entry.path.read_bytes()) for entry in entries] == [data_set(file) for file in files]
    assert {(entry.calling_ae_title, entry.called_ae_title) for entry in entries} == {("VIEWER", "CLOISTER")}
    said = answer.json()
    assert said["00081190"]["Value"] == [f"{service.url}/studies/1.2.1"]
    assert [item["00081155"]["Value"][0] for item in said[STORED]["Value"]] == [
        entry.sop_instance_uid for entry in entries
    ]
    url = said[STORED]["Value"][0]["00081190"]["Value"][0]
    assert url == f"{service.url}/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.1"
    assert FAILED not in said
    assert service.counted == [(3, 0)]


def test_what_cannot_be_read_fails_alone(service: Service, tmp_path: Path) -> None:
    good = instance(tmp_path)
    cut = instance(tmp_path, 2)[:-40]
    answer = service.post(message([b"no DICOM", cut, good, good[:140], b""]))
    assert answer.status_code == 202
    assert reasons(answer) == [0xC000]
    assert reasons(answer, OTHERS) == [0xC000] * 3
    assert len(answer.json()[STORED]["Value"]) == service.inbox.count() == 1
    assert service.is_clean()


def test_nothing_stored_is_a_conflict(service: Service) -> None:
    assert service.post(message([b"no DICOM" * 100])).status_code == 409
    assert service.inbox.count() == 0


def test_an_instance_of_another_study_is_refused(service: Service, tmp_path: Path) -> None:
    other = instance(tmp_path, 2, "1.2.2")
    answer = service.post(message([instance(tmp_path), other]), "/studies/1.2.1")
    assert answer.status_code == 202
    assert reasons(answer) == [0xA900]
    assert answer.json()[FAILED]["Value"][0]["00081155"]["Value"] == ["1.2.2.1.2"]
    assert service.post(message([other]), "/studies/1.2.1").status_code == 409


@pytest.mark.parametrize("said", [b"1.2.1.1.9\0", b"\0" * 10, b"not a UID!"])
def test_the_data_set_and_not_its_file_meta_information_names_an_instance(
    service: Service, tmp_path: Path, said: bytes
) -> None:
    file = instance(tmp_path)
    answer = service.post(message([file.replace(b"1.2.1.1.1\0", said, 1)]))
    assert answer.status_code == 200
    assert answer.json()[STORED]["Value"][0]["00081155"]["Value"] == ["1.2.1.1.1"]
    (entry,) = service.inbox.entries(10)
    assert entry.sop_instance_uid == read_header(entry.path).sop_instance_uid == "1.2.1.1.1"
    assert data_set(entry.path.read_bytes()) == data_set(file)
    assert service.is_clean()


def test_other_media_types_are_refused(service: Service, tmp_path: Path) -> None:
    json_part = part(b"[]", "application/dicom+json")
    assert service.post(json_part + END).status_code == 415
    answer = service.post(json_part + part(instance(tmp_path)) + END)
    assert answer.status_code == 202
    assert reasons(answer, OTHERS) == [0xC000]
    for kind in ("application/dicom", f"multipart/form-data; boundary={BOUNDARY}", ""):
        assert service.post(message([]), **{"content-type": kind}).status_code == 415
    wanted = f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'
    assert service.post(json_part + END, **{"content-type": wanted}).status_code == 415


def test_a_compressed_request_is_refused(service: Service, tmp_path: Path) -> None:
    content = gzip.compress(message([instance(tmp_path)]))
    assert service.post(content, **{"content-encoding": "gzip"}).status_code == 415


def test_a_receiver_that_starts_anew_meanwhile_costs_an_upload_but_no_instance(
    service: Service, tmp_path: Path
) -> None:
    def content() -> Iterator[bytes]:
        yield part(instance(tmp_path, 2)) + large(tmp_path, 1 << 20) + bytes(1 << 20)
        wait_until(lambda: service.inbox.count() == 1 and not service.is_clean(), "the second is written")
        another = Inbox(service.inbox.root, min_free_bytes=1)
        another.recover()
        another.release()
        yield b"\r\n" + END

    answer = service.post(content())
    assert answer.status_code == 202
    assert reasons(answer) == [0x0110]
    assert len(answer.json()[STORED]["Value"]) == service.inbox.count() == 1
    assert service.is_clean()


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.1", "1.2.840.10008.5.1.4.38.1"])
def test_what_is_no_storage_is_refused(service: Service, tmp_path: Path, uid: str) -> None:
    answer = service.post(message([instance(tmp_path, SOPClassUID=uid)]))
    assert (answer.status_code, reasons(answer)) == (409, [0x0122])


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.6", "1.3.46.670589.11.0.0.12.2"])
def test_a_retired_and_a_private_class_are_taken_as_the_inbox_says(
    service: Service, tmp_path: Path, sop_class: str
) -> None:
    content = message([instance(tmp_path, SOPClassUID=sop_class)])
    assert service.post(content).status_code == 200
    service.inbox.classes = StorageClasses(retired=False, private=frozenset())
    answer = service.post(content)
    assert (answer.status_code, reasons(answer)) == (409, [0x0122])
    assert (service.inbox.count(), service.is_clean()) == (1, True)


def test_an_answer_that_the_client_does_not_take_is_not_prepared(service: Service, tmp_path: Path) -> None:
    answer = service.post(message([instance(tmp_path)]), accept="application/dicom+xml")
    assert answer.status_code == 406
    assert service.inbox.count() == 0


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", None),
        (END, None),
        (b"--other\r\n", None),
        (part(b"x"), None),
        (part(b"x") + END[:-4], None),
        (b"--a-boundary\r\nbad header\r\n\r\nx\r\n" + END, None),
        (END, "multipart/related; type=application/dicom"),
        (END, f"multipart/related; boundary={'x' * 280}"),
    ],
)
def test_a_malformed_message_is_a_bad_request(service: Service, content: bytes, kind: str | None) -> None:
    answer = service.post(content, **({"content-type": kind} if kind else {}))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.is_clean()


def test_a_message_that_is_cut_off_keeps_what_was_whole(service: Service, tmp_path: Path) -> None:
    first, second = (part(instance(tmp_path, number)) for number in (1, 2))
    assert service.post(first + second[:-2]).status_code == 400
    assert service.inbox.count() == 1
    assert service.is_clean()


def test_a_full_disk_is_answered_before_anything_is_sent(service: Service, tmp_path: Path) -> None:
    service.inbox.min_free_bytes = 1 << 60
    answer = service.post(message([instance(tmp_path)]))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert (service.inbox.count(), service.is_clean()) == (0, True)


def test_a_disk_that_fills_up_fails_the_instances_that_come_then(service: Service, tmp_path: Path) -> None:
    def content() -> Iterator[bytes]:
        yield part(instance(tmp_path, 1)) + part(bytes(1 << 20))
        wait_until(lambda: service.inbox.count() == 1, "the first instance is stored")
        service.inbox.min_free_bytes = 1 << 60
        yield part(instance(tmp_path, 2)) + END

    answer = service.post(content())
    assert answer.status_code == 202
    assert reasons(answer) == [0xA700]
    assert service.is_clean()


def test_a_disk_that_fills_up_within_an_instance_says_when_to_come_again(
    service: Service, tmp_path: Path
) -> None:
    def content() -> Iterator[bytes]:
        yield large(tmp_path, 42 << 20) + bytes(2 << 20)
        wait_until(lambda: not service.is_clean(), "the instance is being written")
        service.inbox.min_free_bytes = 1 << 60
        for _ in range(40):
            yield bytes(1 << 20)
        yield b"\r\n" + END

    answer = service.post(content())
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert reasons(answer) == [0xA700]
    assert (service.inbox.count(), service.is_clean()) == (0, True)


def test_an_instance_that_is_too_large_is_refused(service: Service, tmp_path: Path) -> None:
    service.inbox.max_instance_bytes = 100
    answer = service.post(message([instance(tmp_path)]))
    assert answer.status_code == 413
    assert service.is_clean()


def test_a_disk_that_cannot_be_written_is_answered_with_a_failure(service: Service, tmp_path: Path) -> None:
    service.inbox.folder.rename(tmp_path / "elsewhere")
    answer = service.post(message([instance(tmp_path)]))
    assert answer.status_code == 503
    assert reasons(answer) == [0x0110]
    assert service.is_clean()


def test_a_connection_that_ends_leaves_nothing(service: Service, tmp_path: Path) -> None:
    host, _, port = service.url.removeprefix("http://").partition(":")
    content = part(instance(tmp_path))
    head = (
        f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {STOW['content-type']}\r\n"
        f"Content-Length: {len(content) + 9000000}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(head.encode() + content[:-40] + bytes(2 << 20))
        wait_until(lambda: not service.is_clean(), "the instance is being written")
    wait_until(service.is_clean, "nothing of it is left")
    assert service.post(message([instance(tmp_path)])).status_code == 200


def test_a_client_that_falls_silent_is_given_up_and_others_wait_their_turn(
    service: Service, tmp_path: Path
) -> None:
    host, _, port = service.url.removeprefix("http://").partition(":")
    head = (
        f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {STOW['content-type']}\r\n"
        "Content-Length: 9000000\r\n\r\n"
    )
    whole = message([instance(tmp_path)])
    peers = [socket.create_connection((host, int(port))) for _ in range(2)]
    for peer in peers:
        peer.sendall(head.encode() + whole[:500])
    wait_until(lambda: service.post(whole).status_code == 503, "both places are taken")
    for peer in peers:
        peer.settimeout(10)
        assert peer.recv(4000).startswith(b"HTTP/1.1 408")
        peer.close()
    assert service.post(whole).status_code == 200


def large(folder: Path, size: int) -> bytes:
    """Return the beginning of a part, up to pixel data of that many bytes."""
    file = instance(folder)
    pixels = file.rindex(b"OW\0\0") + 4
    return part(file[:pixels] + size.to_bytes(4, "little"))[:-2]


def test_a_large_instance_is_not_held_in_memory(service: Service, tmp_path: Path) -> None:
    piece, count = bytes(1 << 20), 300

    def content() -> Iterator[bytes]:
        yield large(tmp_path, len(piece) * count)
        for _ in range(count):
            yield piece
        yield b"\r\n" + END

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = service.post(content())
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert answer.status_code == 200
    assert service.inbox.entries(1)[0].size_bytes > 300 << 20
    assert grown_kib < 60 << 10


def test_any_bytes_leave_it_serving(service: Service, tmp_path: Path) -> None:
    """A few hundred requests, each damaged in a place that the seed chooses."""
    chance = random.Random(20260101)  # noqa: S311 - a seed makes it repeatable
    whole = message([instance(tmp_path, number) for number in (1, 2)])
    with httpx.Client(base_url=service.url, headers=STOW, timeout=30) as client:
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 12)):
                at = chance.randrange(len(damaged))
                how = chance.randrange(4)
                if how == 0:
                    damaged[at] = chance.randrange(256)
                elif how == 1:
                    del damaged[at : at + chance.randrange(1, 200)]
                elif how == 2:
                    damaged[at:at] = chance.randbytes(chance.randrange(1, 200))
                else:
                    damaged[at:at] = damaged[: chance.randrange(400)]
            answer = client.post("/studies", content=bytes(damaged))
            assert answer.status_code in {200, 202, 400, 409, 415}
            assert service.is_clean()
    assert service.post(message([instance(tmp_path, 7, "1.2.7")]), "/studies/1.2.7").status_code == 200
    assert service.failures == []
