"""Deliveries as staff see them and act on them, by command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import breakers, deliveries
from appliance.cli import build
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.db.peers import Delivery, Peer
from tests.appliance.delivery_scene import Scene, running_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from appliance.node import ClinicalZone


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


@pytest.fixture
def run(scene: Scene, tmp_path: Path) -> Callable[..., Result]:
    config = tmp_path / "cloister.toml"
    config.write_text(f'data_root = "{scene.zone.settings.data_root}"\n')

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(build(), ["delivery", *arguments, "--config", str(config)])

    return call


def kinds(scene: Scene) -> list[str]:
    with reading(scene.zone.engine) as session:
        return list(session.scalars(select(ClinicalLedgerEntry.kind)))


def test_deliveries_are_listed_with_reason_next_try_and_proof(
    scene: Scene, run: Callable[..., Result]
) -> None:
    scene.workstation.inbox.min_free_bytes = 1 << 60
    scene.deliver()
    (row,) = json.loads(run("list", "--json").stdout)
    assert (row["destination"], row["state"], row["attempts"], row["proof"]) == ("ws", "queued", 1, "")
    assert row["next_try_at"]
    assert "0xA700" in run("list").stdout
    assert run("list", "--state", "dead").stdout == "no delivery\n"
    assert run("list", "--state", "lost").exit_code == 2
    scene.workstation.inbox.min_free_bytes = 0
    scene.make_due()
    scene.deliver()
    assert "delivered  stored" in run("list", "--peer", "ws").stdout
    with reading(scene.zone.engine) as session:
        (there,) = deliveries.destinations(session)
    assert (there.delivered, there.stored, there.queued, there.failures) == (1, 1, 0, 0)


def test_a_retry_goes_out_at_once_though_the_destination_rests(
    scene: Scene, run: Callable[..., Result]
) -> None:
    scene.change(Peer, failures=9, rests_until=now().replace(year=2999))
    assert scene.deliver().reason == breakers.RESTS
    with reading(scene.zone.engine) as session:
        (there,) = deliveries.destinations(session)
    assert there.rests_until is not None
    assert run("retry", scene.delivery_id[:8]).exit_code == 0
    assert scene.deliver().state == "delivered"
    assert "delivery.retried" in kinds(scene)
    assert run("retry", scene.delivery_id).exit_code == 2


def test_a_stopped_delivery_that_is_retried_is_sent(scene: Scene, run: Callable[..., Result]) -> None:
    scene.change(Peer, enabled=False)
    assert scene.deliver().state == "dead"
    scene.change(Peer, enabled=True)
    assert run("retry", scene.delivery_id).exit_code == 0
    assert scene.deliver().state == "delivered"


def test_a_withheld_result_is_not_sent_any_more(scene: Scene, run: Callable[..., Result]) -> None:
    scene.change(ClinicalJob, state=WorkState.RUNNING)
    assert "being sent" in run("withhold", scene.delivery_id).output
    scene.change(ClinicalJob, state=WorkState.QUEUED)
    assert run("withhold", scene.delivery_id).exit_code == 0
    row = scene.deliver()
    assert (row.state, row.reason, scene.job.state) == ("withheld", deliveries.BY_STAFF, "done")
    assert scene.received == []
    assert kinds(scene).count("result.withheld") == 1
    for word in ("withhold", "retry"):
        assert run(word, scene.delivery_id).exit_code == 2


def test_what_the_destination_has_cannot_be_withheld(scene: Scene, run: Callable[..., Result]) -> None:
    scene.change(Delivery, proof="stored")
    assert "the destination has it" in run("withhold", scene.delivery_id).output


@pytest.mark.parametrize("given", ["", "abc", "zzzzzzzz", "0" * 32, "%" * 8])
def test_an_id_that_means_no_delivery_is_refused(run: Callable[..., Result], given: str) -> None:
    assert run("retry", given).exit_code == 2
