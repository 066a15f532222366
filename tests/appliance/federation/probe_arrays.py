"""Two of the engine's cells, connected over TCP, that send each other arrays: in a process of its own.

``python -m tests.appliance.federation.probe_arrays WAY [MEBIBYTES]`` prints a JSON object; ways are below.
With ``spoilt`` the same cells send one after the other all that a site should not send, then what it should.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message

from appliance.federation import arraystream
from appliance.federation.arraystream import ArrayStream, Piece
from tests.dicom_node.support import free_port
from trainer.errors import UpdateError
from trainer.federation.aggregation import plain_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvflare.fuel.f3.message import Message

OWN = "own"  # as the product sends them
ENGINE = "engine"  # as the engine does
ALL_SPOILT = "spoilt"  # each way below, then our own
CHANNEL = "probe"
TOPIC = "arrays"
Produced = tuple[str, Any, dict[str, Any]]


def model(mebibytes: int) -> dict[str, Any]:
    """Return arrays of many forms, most of the size in a few."""
    draw = np.random.default_rng(3)
    big = {f"layer{i}": draw.standard_normal((4, mebibytes * 2**13), np.float32) for i in range(8)}
    return {
        **big,
        "half": draw.standard_normal(1001).astype(np.float16),
        "wide": draw.standard_normal((3, 5, 7)),
        "count": np.array(12, np.int64),
        "bytes": np.arange(11, dtype=np.uint8),
        "flags": np.array([True, False]),
        "scattered": np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
        "read_only": np.broadcast_to(np.float32(3), (3, 2)),
    }


@contextlib.contextmanager
def spoilt(way: str) -> Iterator[None]:
    """Let every stream of this process be one that a site should not send."""
    honest, laid = ArrayStream.produce, ArrayStream.__init__

    def produce(self: ArrayStream, state: dict[str, Any], requester: str) -> Produced:
        code, data, new = honest(self, state, requester)
        if not data:
            return code, data, new
        return code, *SPOILT[way](data, dict(new))

    if way == "without_one":
        ArrayStream.__init__ = lambda self, arrays: laid(self, dict(list(arrays.items())[1:]))  # type: ignore[method-assign]
    elif way in SPOILT:
        ArrayStream.produce = produce  # type: ignore[method-assign]
    try:
        yield
    finally:
        ArrayStream.produce, ArrayStream.__init__ = honest, laid  # type: ignore[method-assign]


SPOILT: dict[str, Any] = {
    "without_one": None,
    "garbage": lambda data, new: ([Piece(b"\xff" * len(data[0]))], new),
    "no_pieces": lambda data, new: (["text" for _ in data], new),
    "too_many": lambda data, new: (data * 2, new),
    "too_few": lambda data, new: (data, {**new, "total": new["total"] + 1}),
    "endless": lambda data, new: (data, {**new, "total": 2**50}),
    "no_total": lambda data, new: (data, {"first": new["first"]}),
}


def main() -> None:
    """Send arrays there and back; say whether they are the same, and what it cost."""
    way = sys.argv[1]
    sent = model(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    if way != ENGINE:
        arraystream.register()
    flare_decomposers.register()
    numpy_decomposers.register()
    url, received = f"tcp://127.0.0.1:{free_port()}", []
    server, site = cell("server", url), cell("north", url)

    def answer(request: Message) -> Message:
        received.append(request.payload)
        return make_reply("ok", body={name: np.array(array) for name, array in request.payload.items()})

    server.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=answer)

    def sending(way: str) -> dict[str, Any]:
        received.clear()
        with spoilt(way):
            reply = site.send_request(
                channel=CHANNEL,
                topic=TOPIC,
                target="server",
                request=new_cell_message({}, sent),
                timeout=60.0,
            )
        return outcome(sent, received, reply)

    if way == ALL_SPOILT:
        found: dict[str, Any] = {one: sending(one) for one in (*SPOILT, OWN)}
    else:
        began, computed = time.perf_counter(), time.process_time()
        found = sending(way)
        found["seconds"] = time.perf_counter() - began
        found["processor_s"] = time.process_time() - computed
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the engine's own way leaves a file, for the one that started the process


def cell(name: str, url: str) -> Cell:
    """Start one of the engine's ends."""
    started = Cell(fqcn=name, root_url=url, secure=False, credentials={}, create_internal_listener=False)
    started.start()
    return started


def outcome(sent: dict[str, Any], received: list[dict[str, Any]], reply: Message) -> dict[str, Any]:
    """Return what arrived at either end."""
    found = {}
    for end, arrays in (("there", received[0] if received else None), ("back", reply.payload)):
        if not isinstance(arrays, dict):
            found[end] = "nothing"
            continue
        try:
            arrived = plain_arrays(arrays)
        except UpdateError as error:
            found[end] = f"refused: {error.code}"
            continue
        same = all(
            np.array_equal(arrived[name], array) and arrived[name].dtype == array.dtype
            for name, array in sent.items()
        )
        found[end] = "same" if same and arrived.keys() == sent.keys() else "other"
    return found


if __name__ == "__main__":
    main()
