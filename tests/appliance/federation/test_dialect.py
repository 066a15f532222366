"""Sites and coordinators of other versions: each is told both and what to do, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from nvflare.apis.shareable import Shareable

from appliance import node
from appliance.federation import coordinator, dialect, invitations, messages, refusals
from appliance.federation.answers import read_result
from appliance.federation.dialect import Dialect, DialectError
from appliance.settings import load_settings
from tests.appliance.federation.ring import CONFIG, Ring, approve_at, is_known, running_ring, until
from tests.further import FURTHER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.site import SiteService
    from trainer.federation.plan import Plan

ROOT = Path(__file__).parents[3]
OWN = dialect.PROTOCOL
PACKAGES = ("anonymizer", "appliance", "dicom_node", "inference", "trainer")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (Dialect("0.1.0", OWN, OWN), ""),
        (Dialect("9.0.0", OWN + 6, OWN), ""),
        (
            Dialect("9.0.0", OWN + 6, OWN + 1),
            "this site runs {own}, the coordinator Cloister 9.0.0 {newer}: {here}",
        ),
        (
            Dialect("0.0.9", OWN - 1, OWN - 1),
            "this site runs {own}, the coordinator Cloister 0.0.9 {older}: {there}",
        ),
        (Dialect(), "this site runs {own}, the coordinator an earlier Cloister, which does not say {tail}"),
    ],
)
def test_a_refusal_names_both_versions_and_who_has_to_be_updated(there: Dialect, said: str) -> None:
    here, other = "update Cloister at this site", "update Cloister at the coordinator"
    numbers = {"newer": f"(protocol {OWN + 6})", "older": f"(protocol {OWN - 1})"}
    expected = said.format(own=dialect.own(), here=here, there=other, tail=f"its version: {other}", **numbers)

    assert dialect.mismatch(there, "this site", "the coordinator") == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"cloister": "1"},
        {"cloister": "", "protocol": 1, "oldest": 1},
        {"cloister": "x" * 41, "protocol": 1, "oldest": 1},
        {"cloister": "a\nb", "protocol": 1, "oldest": 1},
        {"cloister": "1", "protocol": True, "oldest": 1},
        {"cloister": "1", "protocol": 2**70, "oldest": 1},
        {"cloister": "1", "protocol": 1, "oldest": -1},
    ],
)
def test_what_says_no_version_is_refused(value: object) -> None:
    with pytest.raises(DialectError):
        dialect.read(value)


def test_what_the_other_side_says_beside_its_version_is_left_to_later_ones() -> None:
    assert dialect.read({**dialect.own().to_json(), "more": 1}) == dialect.own()


def answered(**changes: Any) -> messages.SiteAnswer:
    content = {**messages.refusal_of(None), **changes}
    return read_result("north", Shareable({messages.ANSWER_KEY: json.dumps(content)})).said


def test_a_site_that_does_not_check_versions_is_refused_by_the_coordinator() -> None:
    assert answered().code == ""
    for speaks, name in (({}, "earlier Cloister"), (Dialect("7.7", 9, 8).to_json(), "Cloister 7.7")):
        found = answered(speaks=speaks)
        assert found.code == dialect.OTHER_VERSION
        assert name in found.message
        assert str(dialect.own()) in found.message
    assert answered(speaks=1).code == "unreadable"


def test_an_order_says_what_its_coordinator_speaks() -> None:
    order = messages.Order("a" * 64)
    text = messages.write_order(order)

    assert messages.read_order(text).speaks == dialect.own()
    content = json.loads(text)
    del content["speaks"]
    assert messages.read_order(json.dumps(content)).speaks == Dialect()


@pytest.mark.parametrize("change", [{"shuffled": True}, {"strategy": {"name": "fedavg3", "parameters": {}}}])
def test_a_plan_of_a_newer_version_is_refused_with_both_versions(
    service: SiteService, plan: Plan, change: dict[str, Any]
) -> None:
    newer = Dialect("0.9.0", dialect.PROTOCOL, dialect.OLDEST)

    decision = service.propose({**plan.to_json(), **change}, "0" * 64, str(newer))

    assert (decision.standing, decision.code) == ("refused", refusals.UNREADABLE_PLAN)
    assert str(newer) in decision.message
    assert str(dialect.own()) in decision.message
    assert "update the older one" in decision.message
    same = service.propose({**plan.to_json(), **change}, "0" * 64, str(dialect.own()))
    assert "update" not in same.message


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("versions"), ("north", "west")) as running:
        yield running


def another_version(folder: Path, protocol: int, oldest: int) -> Path:
    """Copy the program, and let the copy speak another protocol."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "appliance" / "federation" / "dialect.py"
    text = path.read_text()
    for name, before, after in (
        ("PROTOCOL", dialect.PROTOCOL, protocol),
        ("OLDEST", dialect.OLDEST, oldest),
    ):
        assert f"{name}: Final = {before}" in text
        text = text.replace(f"{name}: Final = {before}", f"{name}: Final = {after}")
    path.write_text(text)
    return folder


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("protocol", "oldest", "older"),
    [
        pytest.param(0, 0, "this site", id="old"),
        pytest.param(8, 7, "the coordinator", id="new", marks=FURTHER),
    ],
)
def test_a_run_waits_for_a_site_of_another_version_and_goes_on_when_it_is_updated(
    ring: Ring, tmp_path: Path, protocol: int, oldest: int, older: str
) -> None:
    west = ring.members["west"]
    west.program.stop()
    west.program.tree_root = another_version(tmp_path, protocol, oldest)
    west.program.start()
    until(west.answers, 60.0, "the other version's research zone answers")
    plan = ring.submit(total_rounds=2, min_sites=2)
    until(lambda: is_known(ring.members["north"], plan), 90.0, "the plan is known")
    approve_at(ring.members["north"], plan)

    until(lambda: "west" in (ring.view(plan).reason or ""), 120.0, "the run says whom it waits for")

    reason = ring.view(plan).reason or ""
    assert ring.view(plan).state == "running"
    assert f"(protocol {protocol})" in reason
    assert f"(protocol {dialect.PROTOCOL})" in reason
    assert f"update Cloister at {older}" in reason
    assert not is_known(west, plan)
    refused = [row for row in west.client.ledger(limit=1000) if row.kind == refusals.ORDER_REFUSED]
    assert [row.body["code"] for row in refused].count(dialect.OTHER_VERSION) == 1
    assert not [row for row in west.client.ledger(limit=1000) if row.kind.startswith("consortium.found")]

    west.program.stop()
    west.program.tree_root = None
    west.program.start()
    ring.approve(plan, 120.0)
    assert ring.until_over(plan).state == "done"


@pytest.mark.e2e
def test_a_site_of_another_version_does_not_join(ring: Ring, tmp_path: Path) -> None:
    config = tmp_path / "site" / "cloister.toml"
    config.parent.mkdir()
    config.write_text(CONFIG.format(name="east"))
    node.create_node(load_settings(config))
    book = coordinator.open_book(ring.federation)
    assert book.ledger is not None
    code = invitations.invite(ring.federation, book.engine, book.ledger, "east", 1.0)
    book.engine.dispose()
    environment = {**os.environ, "PYTHONPATH": str(another_version(tmp_path / "newer", 8, 7))}
    argv = [sys.executable, "-m", "appliance.cli", "join", str(code), "--config", str(config)]

    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)

    assert done.returncode == 1
    assert "(protocol 8)" in done.stderr
    assert "update Cloister at the coordinator" in done.stderr
