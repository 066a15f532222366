"""A hostile coordinator: submits jobs with code and with classes that no site allows; prints how they ended.
With ``orders`` in place of MARK it submits the workflow of :mod:`tests.appliance.federation.hostile_orders`.

It runs in a process of its own, ``python -m tests.appliance.federation.hostile ROOT MARK``: the first job's
code would make the file MARK.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from appliance.federation import job, members, provision
from appliance.federation.book import open_book
from appliance.federation.enginelink import EngineAwayError, EngineLink, has_ended

ORDERS = "tests.appliance.federation.hostile_orders.HostileWorkflow"
JOBS = {
    "own-code": ("evil.Evil", "open({mark!r}, 'w').close()\n"),
    "unlisted": ("nvflare.app_common.np.np_trainer.NPTrainer", ""),
}


def hostile_job(folder: Path, executor: str, code: str) -> Path:
    """Write a job that names another executor and brings code along."""
    job.build(folder, "run-1", 1)
    config = folder / "app" / "config"
    site = job.site_config()
    site["executors"][0]["executor"]["path"] = executor
    (config / "config_fed_client.json").write_text(json.dumps(site))
    if code:
        (folder / "app" / "custom").mkdir()
        (folder / "app" / "custom" / "evil.py").write_text(code)
    return folder


def wait_for_sites(link: EngineLink, sites: set[str]) -> None:
    """Wait until all sites are connected."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if set(link.sites()) == sites:
                return
        except EngineAwayError:
            pass
        time.sleep(0.5)
    raise TimeoutError("the sites did not come back")


def ended(link: EngineLink, job_id: str, timeout_s: float = 60) -> str:
    """Return a job's last status."""
    deadline = time.monotonic() + timeout_s
    while not has_ended(status := link.status(job_id)) and time.monotonic() < deadline:
        time.sleep(0.3)
    return status


def ordering_job(folder: Path) -> Path:
    """Write a job whose workflow asks for too much, and which gives the site's executor another task."""
    job.build(folder, "run-1", 1)
    config = folder / "app" / "config"
    server = job.server_config("run-1")
    server["workflows"] = [{"id": "run", "path": ORDERS, "args": {}}]
    (config / "config_fed_server.json").write_text(json.dumps(server))
    site = job.site_config()
    site["executors"][0]["tasks"].append("activations")
    (config / "config_fed_client.json").write_text(json.dumps(site))
    return folder


def main() -> None:
    """Submit the jobs, one after the other."""
    federation = provision.load(Path(sys.argv[1]))
    link = EngineLink(federation.admin_workspace)
    book = open_book(federation)
    wait_for_sites(link, set(members.active(book.engine)))
    statuses = {}
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[2] == "orders":
            statuses["orders"] = ended(link, link.submit(ordering_job(Path(folder) / "orders")), 150)
        for name, (executor, code) in () if statuses else JOBS.items():
            path = hostile_job(Path(folder) / name, executor, code.format(mark=sys.argv[2]))
            statuses[name] = ended(link, link.submit(path))
    sys.stdout.write(f"{json.dumps(statuses)}\n")
    sys.stdout.flush()
    os._exit(0)  # the engine's client leaves threads behind


if __name__ == "__main__":
    main()
