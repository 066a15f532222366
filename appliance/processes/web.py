"""The panel, the API, ``/healthz`` and ``/metrics``."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

from appliance import node
from appliance.processes.base import Process, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import uvicorn

    from appliance.settings import WebSettings

NAME = "web"
BEAT_EVERY_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process until SIGTERM."""
    return run(NAME, _body, argv)


def _body(process: Process) -> None:
    # Read when the page framework is imported: it keeps nothing there, but would look in the working folder.
    os.environ["NICEGUI_STORAGE_PATH"] = str(node.run_dir(process.settings) / "nicegui")
    import uvicorn  # noqa: PLC0415 - as above

    from appliance.filing import open_inbox  # noqa: PLC0415 - as above
    from appliance.research_client import connect  # noqa: PLC0415 - as above
    from appliance.web.app import build  # noqa: PLC0415 - as above
    from appliance.web.desk import Desk  # noqa: PLC0415 - as above
    from appliance.web.dicomweb import WRITER  # noqa: PLC0415 - as above

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its lines name pages' ids
    settings = process.settings
    zone = node.open_clinical(settings)
    inbox = open_inbox(zone, WRITER)
    inbox.recover()  # and hold the place of this writer
    desk = Desk(settings, zone, connect(settings))
    web = settings.web
    turned = threading.Event()

    async def take_note() -> None:
        turned.set()

    config = uvicorn.Config(
        build(desk),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        lifespan="on",
        timeout_graceful_shutdown=2,
        callback_notify=take_note,
        timeout_notify=1,
        ssl_certfile=web.tls_certificate,
        ssl_keyfile=web.tls_key,
    )
    with _listen(web) as listener:
        node.publish_port(settings, NAME, listener.getsockname()[1])
        _serve(process, uvicorn.Server(config), listener, turned)
    inbox.release()


def _listen(web: WebSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((web.host, web.port))
    listener.listen(128)
    return listener


def _serve(
    process: Process, server: uvicorn.Server, listener: socket.socket, turned: threading.Event
) -> None:
    """Serve in a thread of its own; this one keeps watch and leaves signs of life while the loop turns."""
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="serving", daemon=True)
    serving.start()
    while serving.is_alive():
        turned.clear()
        if turned.wait(BEAT_EVERY_S):
            process.beat()
        if process.stopping.wait(BEAT_EVERY_S):
            break
    server.should_exit = True
    serving.join()


if __name__ == "__main__":
    raise SystemExit(main())
