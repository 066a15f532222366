"""Members come and go while the federation runs: real nodes, real TLS, nobody is restarted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy import select

from appliance import health, research_client
from appliance.db.coordinator import CoordinatorLedgerEntry
from appliance.db.engine import reading, writing
from appliance.federation import authority, book, enginehost, members, workspaces
from tests.appliance.federation.doorway import PEM
from tests.appliance.federation.ring import (
    Member,
    Program,
    Ring,
    approve_at,
    cloister,
    decide_at,
    join_member,
    running_ring,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.progress import RunProgress

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("members"), ("north", "south")) as running:
        yield running


def counted(view: RunProgress, number: int) -> set[str]:
    return {one.site for one in view.rounds[number - 1].sites if one.accepted}


def listed(ring: Ring) -> dict[str, dict[str, Any]]:
    content = json.loads(cloister("coordinator", "members", ring.federation.root, "--json"))
    return {one["site"]: one for one in content["members"]}


def nearly_ended(ring: Ring, member: Member) -> bytes:
    """Give a site a certificate that ends in twenty minutes, as the coordinator would have."""
    workspace = member.settings.federation.workspace
    assert workspace is not None
    here = workspaces.read(workspace)
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = asked.sign(here.private_key(), hashes.SHA256()).public_bytes(PEM)
    made = authority.load(ring.federation.root).sign_site(request, member.name, timedelta(minutes=20))
    opened = book.open_book(ring.federation)
    assert opened.ledger is not None
    used = authority.described(here.certificate).serial
    with writing(opened.engine) as session:
        members.renew(session, opened.ledger, member.name, used, authority.described(made))
    opened.engine.dispose()
    (workspace / "startup" / "client.crt").write_bytes(made)
    return made


def test_a_site_joins_a_running_federation_and_takes_part_from_the_next_job_on(ring: Ring) -> None:
    plan = ring.submit(total_rounds=11, min_sites=2, straggler_wait_s=30.0)
    ring.approve(plan)
    ring.until_round(plan, 1)
    decide_at(ring.members["south"], plan, "pause")  # the run is not over before the new site is ready
    running = {pid for program in [ring.coordinator] for pid in program.find("enginehost", "server")}
    east = join_member(ring.folder / "east", "east", ring.federation, 7, by_command=True)
    ring.members["east"] = east
    short = nearly_ended(ring, east)

    east.program.start()
    until(lambda: any(one.plan_sha256 == plan.sha256 for one in _protocols(east)), 120, "east knows the plan")
    approve_at(east, plan)
    decide_at(ring.members["south"], plan, "resume")
    view = ring.until_over(plan, 300)

    assert view.state == "done", view.reason
    assert counted(view, 1) == {"north", "south"}
    assert counted(view, 11) == {"north", "south", "east"}  # the first round of the second job
    assert set(ring.coordinator.find("enginehost", "server")) == running
    assert east.settings.federation.workspace is not None
    now = workspaces.read(east.settings.federation.workspace).certificate
    assert now != short  # it renewed by itself, beside the run
    assert listed(ring)["east"]["certificate_ends_at"] > listed(ring)["north"]["joined_at"]
    checks = {check.name: check for check in health.overall(east.settings).checks}
    assert checks[health.MEMBERSHIP].ok


def _protocols(member: Member) -> list[Any]:
    try:
        return list(member.client.protocols())
    except research_client.ResearchUnavailableError:
        return []


def test_an_expelled_site_is_cut_off_and_the_run_goes_on_for_the_others(ring: Ring) -> None:
    plan = ring.submit(total_rounds=5, min_sites=2, straggler_wait_s=30.0)
    ring.approve(plan)
    ring.until_round(plan, 1)

    cloister("coordinator", "expel", ring.federation.root, "east")
    expelled_after = ring.view(plan).finished_rounds
    view = ring.until_over(plan, 300)

    assert view.state == "done", view.reason
    for number in range(expelled_after + 2, 6):
        assert counted(view, number) == {"north", "south"}
    assert listed(ring)["east"]["state"] == "expelled"
    refused = subprocess.run(
        [
            sys.executable,
            "-m",
            "appliance.cli",
            "join",
            "--renew",
            "--config",
            str(ring.members["east"].config),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 1
    assert "no active member" in refused.stderr
    until(lambda: is_refused(ring, "expelled"), 60, "the refusal stands in the ledger")
    ring.members.pop("east").program.stop()


def is_refused(ring: Ring, reason: str) -> bool:
    """Whether a refusal for this reason stands in the coordinator's ledger."""
    opened = book.open_book(ring.federation)
    found = reason in _reasons(opened)
    opened.engine.dispose()
    return found


def _reasons(opened: book.Book) -> list[str]:
    with reading(opened.engine) as session:
        statement = select(CoordinatorLedgerEntry.body).where(
            CoordinatorLedgerEntry.kind == "connection.refused"
        )
        return [json.loads(body)["reason"] for body in session.scalars(statement)]


def test_a_member_that_speaks_under_anothers_name_is_refused_and_recorded(ring: Ring) -> None:
    workspace = ring.members["north"].settings.federation.workspace
    assert workspace is not None
    thief = ring.folder / "thief"
    shutil.copytree(workspace / "startup", thief / "startup")
    shutil.copytree(workspace / "local", thief / "local")
    start = thief / "startup" / "fed_client.json"
    start.write_text(start.read_text().replace('"fqsn": "north"', '"fqsn": "south"'))
    program = Program(enginehost.command("site", thief, "south"), ring.folder / "thief.log")

    program.start()
    try:
        until(lambda: is_refused(ring, "other_name"), 120, "the refusal stands in the ledger")
    finally:
        program.stop()


def test_a_site_leaves_by_itself(ring: Ring) -> None:
    south = ring.members["south"]

    said = cloister("leave", "--config", south.config)
    invited = cloister("coordinator", "invite", ring.federation.root, "--site", "south", "--json")
    look = cloister("join", json.loads(invited)["code"], "--check", "--config", south.config)

    assert "left" in said
    assert "good, for the site south" in look
    assert listed(ring)["south"]["state"] == "left"
    assert south.settings.federation.workspace is not None
    assert not south.settings.federation.workspace.exists()
