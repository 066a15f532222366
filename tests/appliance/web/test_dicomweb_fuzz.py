"""Hostile requests that store: what is sound is changed at random on every layer, and leaves it serving."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest

from appliance.filing import open_inbox
from tests.appliance.web.test_dicomweb_store import Store, store
from tests.dicom_node.dicomweb.server import BOUNDARY, instance, message, part
from tests.dicom_node.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["store"]  # a fixture

REQUESTS = 400
AT_ONCE = 8
FOR_S = 12.0
GROWTH_BYTES = 64 << 20
LENGTHS = (0, 1, 7, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
UNAVAILABLE = 503
STORED, CLOSING = "00081199", f"\r\n--{BOUNDARY}--".encode()
# Pieces of syntax that are put, or left out, where they do not belong.
PIECES = (
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b"\0",
    f"\r\n--{BOUNDARY}\r\n".encode(),
    CLOSING,
    b"\r\n--" + BOUNDARY.encode()[:-1],
    b"Content-Type: multipart/related; boundary=x\r\n\r\n--x\r\n",
    b"Content-Length: 5\r\n",
    b"X-" + b"y" * 20_000 + b": z\r\n",
    b"DICM",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
)


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """Change bytes, lengths among them, in one to four places."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, kind = chance.randrange(len(changed) + 1), chance.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(LENGTHS))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + chance.randint(1, 200)]
        elif kind == 4:
            changed[at:at] = chance.choice(PIECES)
        else:
            changed[at:at] = chance.randbytes(chance.randint(1, 300))
    return bytes(changed)


def head_changed(data: bytes, chance: random.Random) -> bytes:
    """Change what a DICOM file begins with: preamble, file meta information, the first elements."""
    return bytes_changed(data[:600], chance) + data[600:]


def body_changed(files: Sequence[bytes], chance: random.Random) -> bytes:
    """Change the multipart message around files that are sound: its delimiters and the parts' headers."""
    whole = [part(file) for file in files]
    at, kind = chance.randrange(len(whole)), chance.randrange(7)
    if kind == 0:
        whole[at] = bytes_changed(whole[at][:120], chance) + whole[at][120:]
    elif kind == 1:
        whole[at] = part(files[at], chance.choice(["text/plain", "", "application/dicom; x=" + "y" * 9000]))
    elif kind == 2:
        whole[at] = whole[at].replace(b"\r\n\r\n", chance.choice([b"\r\n", b"\n\n", b""]), 1)
    elif kind == 3:
        whole.insert(at, chance.choice(PIECES) * chance.randint(1, 40))
    elif kind == 4:
        whole = [b"".join(whole)[: chance.randrange(sum(map(len, whole)))]]
    elif kind == 5:
        whole = [part(b"")] * chance.randint(1, 300)
    else:
        return b"".join(whole) + chance.choice([b"", b"--", CLOSING[:-1], CLOSING + bytes(100_000)])
    return b"".join(whole) + CLOSING[2:] + b"\r\n"


def chunked(body: bytes, chance: random.Random, *, broken: bool) -> bytes:
    """Return a body in chunks, one of which lies about itself."""
    size = chance.choice([1, 100, 5000]) if len(body) < 5000 else chance.choice([100, 1000, 5000])
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    lines = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    if broken and lines:
        at = chance.randrange(len(lines))
        lines[at] = chance.choice(
            [
                b"ffffffffffffffffff\r\n" + chunks[at] + b"\r\n",
                b"-5\r\n" + chunks[at] + b"\r\n",
                b"%x\r\n%s" % (len(chunks[at]) + 3, chunks[at]),
                b"%x;%s\r\n%s\r\n" % (len(chunks[at]), b"x" * 70_000, chunks[at]),
                b"zz\r\n",
                b"",
                b"0\r\n\r\n",
            ]
        )
    return b"".join(lines) + b"0\r\n\r\n"


@dataclass
class Fuzzer:
    """Sends one changed request after another, and keeps what was answered."""

    url: str
    token: str
    files: Sequence[bytes]
    statuses: Counter[int] = field(default_factory=Counter)
    stored: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def request(self, chance: random.Random) -> bytes:
        """Return a request that is changed on one layer: the files, the message, the chunks or the head."""
        files = [chance.choice(self.files) for _ in range(chance.randint(1, 3))]
        layer = chance.randrange(5)
        if layer == 0:
            body = message([bytes_changed(file, chance) for file in files])
        elif layer == 1:
            body = message([head_changed(file, chance) for file in files])
        elif layer == 2:
            body = body_changed(files, chance)
        else:
            body = message(files)
        in_chunks = layer == 3 or chance.random() < 0.3
        head = self._head(chance, None if in_chunks else len(body), broken=layer == 4)
        return head + (chunked(body, chance, broken=layer == 3) if in_chunks else body)

    def _head(self, chance: random.Random, length: int | None, *, broken: bool) -> bytes:
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        if broken:
            kind = chance.choice([kind, kind[:-3], "multipart/related", f"{kind}; boundary=y", "\xff", ""])
            length = length and chance.choice([length, length - 1, length + 9, 0, 1 << 40, -1])
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        path = chance.choice(["/studies", "/studies/1.2.1", "/studies/1.2.2", "/studies/" + "1" * 65])
        head = (
            f"POST /dicom-web{path} HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\n"
            f"Authorization: Bearer {self.token}\r\n"
            f"Accept: application/dicom+json\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n"
        ).encode("latin-1")
        return bytes_changed(head, chance) if broken and chance.random() < 0.5 else head

    def send(self, chance: random.Random) -> None:
        """Send one request in pieces, and take the answer if there is one soon."""
        content, where = self.request(chance), urlsplit(self.url)
        answer = b""
        with contextlib.suppress(OSError), socket.create_connection((where.hostname, where.port), 5) as peer:
            peer.settimeout(1)
            cut = chance.randrange(len(content) + 1)
            peer.sendall(content[:cut])
            peer.sendall(content[cut:])
            if chance.random() < 0.2:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            peer.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while not _is_whole(answer) and (more := peer.recv(65536)):
                    answer += more
        self._note(answer)

    def _note(self, answer: bytes) -> None:
        found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
        count = 0
        if found and _is_whole(answer) and found[1] in {b"200", b"202"}:
            said = json.loads(answer.partition(b"\r\n\r\n")[2])
            count = len(said.get(STORED, {}).get("Value", []))
        with self._lock:
            self.statuses[int(found[1]) if found else 0] += 1
            self.stored += count


def _is_whole(answer: bytes) -> bool:
    head, ended, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
    return bool(ended and length and len(body) >= int(length[1]))


@pytest.fixture
def files(tmp_path: Path) -> list[bytes]:
    """Give sound instances of two studies."""
    return [instance(tmp_path, number, f"1.2.{number % 2 + 1}") for number in range(1, 6)]


def rounds(act: Callable[[random.Random], None]) -> int:
    """Act again and again, several at once, in the same way each time; return how often."""
    chance = random.Random(4)  # noqa: S311 - the same changes each time
    done, until = 0, time.monotonic() + FOR_S
    while done < REQUESTS and time.monotonic() < until:
        seeds = [random.Random(chance.random()) for _ in range(AT_ONCE)]  # noqa: S311 - as above
        threads = [threading.Thread(target=act, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        done += AT_ONCE
    return done


@pytest.mark.slow
def test_changed_requests_leave_it_serving_and_nothing_half_stored(store: Store, files: list[bytes]) -> None:
    inbox = open_inbox(store.zone)
    assert store.server.process is not None
    process = psutil.Process(store.server.process.pid)
    assert store.post(message(files)).status_code == 200
    before_bytes, before = process.memory_info().rss, inbox.count()
    fuzzer = Fuzzer(store.server.url, store.token, files)
    done = rounds(fuzzer.send)
    assert done >= REQUESTS // 4
    heard = fuzzer.statuses
    assert {200, 400, 409} <= set(heard), heard
    assert {status for status in heard if status >= 500} <= {UNAVAILABLE}, heard

    def left() -> list[Path]:
        return [path for path in inbox.incoming.parent.rglob("*.dcm") if path.is_file()]

    wait_until(lambda: not left(), "nothing half-written is left")
    answer = store.post(message(files))
    assert answer.status_code == 200
    assert len(answer.json()[STORED]["Value"]) == len(files)
    found = inbox.listing(10_000)
    assert found.damaged == []
    assert len(found.entries) >= before + fuzzer.stored + len(files)
    assert process.memory_info().rss - before_bytes < GROWTH_BYTES
    assert "Traceback" not in store.server.log
    store.file()
    assert inbox.count() == 0
