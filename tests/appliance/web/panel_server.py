"""A node's web process as it runs in a hospital, with the research zone's socket beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from appliance import health, node
from tests.appliance.web.seed import PASSWORD, Seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.settings import Settings

START_S = 30.0


@dataclass
class PanelServer:
    """The running process and what was planted in its node."""

    settings: Settings
    seed: Seed
    config: Path
    process: subprocess.Popen[bytes] | None = None
    clients: list[httpx.Client] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)  # user -> a session that tests share

    def start(self) -> None:
        argv = [sys.executable, "-m", "appliance.processes.web", "--config", str(self.config)]
        log = self.config.with_name("web.log").open("ab")
        self.process = subprocess.Popen(argv, start_new_session=True, stderr=log)
        log.close()
        node.bound_port(self.settings, "web", START_S)
        wait_for(self._answers, START_S, "the web process answers")
        wait_for(
            lambda: health.last_beat(self.settings, "web"), health.BEAT_EVERY_S, "a sign of life right away"
        )

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/sign-in").status_code == 200
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{node.bound_port(self.settings, 'web', START_S)}"

    @property
    def log(self) -> str:
        return self.config.with_name("web.log").read_text(encoding="utf-8")

    def client(self, user: str | None = None, *, fresh: bool = False) -> httpx.Client:
        """A program that speaks to the API, signed in as that user; ``fresh`` in a session of its own."""
        client = httpx.Client(base_url=self.url, timeout=30, follow_redirects=False)
        self.clients.append(client)
        if user in self.known and not fresh:
            client.cookies.set("cloister", self.known[user])
        elif user is not None:
            answer = client.post("/api/v1/session", json={"name": user, "password": PASSWORD})
            assert answer.status_code == 200, answer.text
            if not fresh:
                self.known[user] = self.token(client)
        return client

    def token(self, client: httpx.Client) -> str:
        return str(client.cookies["cloister"])

    def stop(self) -> float:
        """Stop with SIGTERM; return the seconds that it took."""
        for client in self.clients:
            client.close()
        if self.process is None:
            return 0.0
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return time.monotonic() - started


def wait_for(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """Wait until a condition holds; return its value."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


def write_config(settings: Settings, path: Path) -> Path:
    """Write the settings of a node as the TOML file that its processes read."""
    sections: dict[str, dict[str, object]] = {
        "dicom": {"port": 0},
        "web": {"port": 0},
        "federation": {"site": settings.federation.site, "enabled": False},
    }
    lines = [f'name = "{settings.name}"', f"data_root = {json.dumps(str(settings.data_root))}"]
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
