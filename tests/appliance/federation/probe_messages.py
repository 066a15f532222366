"""The coordinator's job gets an update that is no message, then an honest one: in a process of its own.

``python -m tests.appliance.federation.probe_messages [engine]`` prints the answer to the honest one. With
``engine``, the engine as it is, the first one ends the process.
"""

from __future__ import annotations

import json
import os
import sys

from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellChannel

from appliance.federation import jobhost
from tests.appliance.federation.probe_arrays import cell
from tests.dicom_node.support import free_port

ENGINE = "engine"
JOB = "server.job"


def send_nonsense(site: Cell) -> None:
    """Send an update that is no message, and wait until it has arrived."""
    headers = {StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS, MessageHeaderKey.REQ_ID: "1"}
    message = Message(headers, b"\xff" * 64)
    submit = (CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE)
    site.send_blob(*submit, JOB, message).result(timeout=10.0)


def main() -> None:
    """Send both; print the answer."""
    if ENGINE not in sys.argv:
        jobhost.outlive_messages()
    url = f"tcp://127.0.0.1:{free_port()}"
    server = Cell("server", root_url=url, secure=False, credentials={}, create_internal_listener=True)
    server.start()
    job = Cell(
        JOB,
        root_url=url,
        secure=False,
        credentials={},
        create_internal_listener=False,
        parent_url=server.get_internal_listener_url(),
    )
    job.register_request_cb(
        channel=CellChannel.SERVER_COMMAND,
        topic=ServerCommandNames.SUBMIT_UPDATE,
        cb=lambda request: make_reply("ok", body=request.payload),
    )
    job.start()
    site = cell("north", url)
    send_nonsense(site)
    reply = site.send_request(
        channel=CellChannel.SERVER_COMMAND,
        topic=ServerCommandNames.SUBMIT_UPDATE,
        target=JOB,
        request=new_cell_message({}, {"honest": 1}),
        timeout=20.0,
    )
    sys.stdout.write(json.dumps(reply.payload) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the engine's own way leaves a file, for the one that started the process


if __name__ == "__main__":
    main()
