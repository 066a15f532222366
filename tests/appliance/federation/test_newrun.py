from __future__ import annotations

import json
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import select

from appliance.db.base import now
from appliance.db.coordinator import FinishedRound
from appliance.db.engine import reading, writing
from appliance.federation import coordinator, members, newrun, provision
from appliance.federation.book import Checkpoint
from appliance.federation.errors import CoordinatorError
from tests.trainer.federation.plans import make_plan
from trainer.encryption import ENCRYPTED, Encryption
from trainer.federation.peering.record import Record
from trainer.federation.plan import Strategy
from trainer.networks import initial_weights
from trainer.peers import OWN_MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def test_a_run_that_needs_more_sites_than_there_are_is_not_written_down(tmp_path: Path) -> None:
    root = tmp_path / "coordinator"
    provision.create(root)
    path = tmp_path / "plan.json"
    path.write_text(make_plan(min_sites=3).dumps())

    with pytest.raises(CoordinatorError, match="min_sites"):
        newrun.add(root, path)


def two_sites(root: Path, keys: Mapping[str, str] = MappingProxyType({})) -> None:
    """Make a coordinator with two members."""
    book = coordinator.open_book(provision.create(root))
    assert book.ledger is not None
    for number, site in enumerate(("north", "south"), 1):
        certificate = members.Certificate(f"{number:040x}", now() + timedelta(days=30))
        with writing(book.engine) as session:
            members.admit(session, book.ledger, site, certificate, keys.get(site))


def test_an_encrypted_run_names_the_keys_of_the_sites_that_take_part(tmp_path: Path) -> None:
    root, path = tmp_path / "coordinator", tmp_path / "plan.json"
    two_sites(root, {"north": "a" * 64, "south": "b" * 64})
    content = {**make_plan(min_sites=2).to_json(), "encryption": {"scheme": "ckks"}}
    path.write_text(json.dumps(content))

    run_id = newrun.add(root, path)

    encryption = coordinator.open_book(provision.load(root)).plan(run_id).encryption
    assert encryption is not None
    assert encryption.recipients == {"north": "a" * 64, "south": "b" * 64}


@pytest.mark.parametrize(
    "other", [{"north": "a" * 64, "south": "c" * 64}, {"north": "a" * 64, "east": "b" * 64}]
)
def test_a_key_goes_to_no_others(tmp_path: Path, other: dict[str, str]) -> None:
    root, path = tmp_path / "coordinator", tmp_path / "plan.json"
    two_sites(root, {"north": "a" * 64, "south": "b" * 64})
    path.write_text(make_plan(min_sites=2, encryption=Encryption(other)).dumps())

    with pytest.raises(CoordinatorError, match="recipients"):
        newrun.add(root, path)


def test_no_run_starts_from_a_model_that_nobody_here_can_read(tmp_path: Path) -> None:
    root, path = tmp_path / "coordinator", tmp_path / "plan.json"
    two_sites(root)
    plan = make_plan(run_id="earlier")
    book = coordinator.open_book(provision.load(root))
    book.add_run(plan, {**initial_weights(plan.task, 5), f"{ENCRYPTED}0.0": np.zeros(9, np.uint8)})
    with reading(book.engine) as session:
        digest = str(session.scalars(select(FinishedRound.model_sha256)).one())
    path.write_text(make_plan(run_id="later", min_sites=2, initial_sha256=digest).dumps())

    with pytest.raises(CoordinatorError, match="encrypted"):
        newrun.add(root, path)


def test_no_run_starts_from_a_round_whose_sites_keep_models_of_their_own(tmp_path: Path) -> None:
    root, path = tmp_path / "coordinator", tmp_path / "plan.json"
    two_sites(root)
    book = coordinator.open_book(provision.load(root))
    plan = make_plan(run_id="earlier", strategy=Strategy("dfedavgm", {}))
    book.add_run(plan, initial_weights(plan.task, 5))
    book.set_job("earlier", "job-a")
    reached = Checkpoint(1, Record("ab" * 32).arrays(), {}, "")
    digest = book.finish_round("earlier", "job-a", reached, [], now()).model_sha256
    path.write_text(make_plan(run_id="later", min_sites=2, initial_sha256=digest).dumps())

    with pytest.raises(CoordinatorError, match="its sites keep their own"):
        newrun.add(root, path)


def finished_model(root: Path, **changes: object) -> str:
    """Write a run's book with one model in it, and return the model's hash."""
    plan = make_plan(run_id="earlier", **changes)
    book = coordinator.open_book(provision.load(root))
    book.add_run(plan, initial_weights(plan.task, 5))
    with reading(book.engine) as session:
        return str(session.scalars(select(FinishedRound.model_sha256)).one())


def test_a_run_starts_from_the_model_that_its_plan_names_by_hash(tmp_path: Path) -> None:
    root = tmp_path / "coordinator"
    two_sites(root)
    digest = finished_model(root)
    path = tmp_path / "plan.json"
    plan = make_plan(run_id="later", strategy=Strategy("transfer", {}), min_sites=2, initial_sha256=digest)
    path.write_text(plan.dumps())

    run_id = newrun.add(root, path)

    with reading(coordinator.open_book(provision.load(root)).engine) as session:
        query = select(FinishedRound.model_sha256).where(FinishedRound.run_id == run_id)
        assert session.scalars(query).all() == [digest]


@pytest.mark.parametrize("digest", ["", "ab" * 32], ids=["none", "unknown"])
def test_a_run_without_the_model_that_it_starts_from_is_not_written_down(tmp_path: Path, digest: str) -> None:
    root = tmp_path / "coordinator"
    two_sites(root)
    path = tmp_path / "plan.json"
    plan = make_plan(strategy=Strategy("transfer", {}), min_sites=2, initial_sha256=digest)
    path.write_text(plan.dumps())

    with pytest.raises(CoordinatorError, match=r"initial_sha256|earlier run's model"):
        newrun.add(root, path)


DP_SGD = {
    "mechanism": "dp-sgd",
    "clip_norm": 1.0,
    "noise_multiplier": 2.0,
    "epsilon": 50.0,
    "delta": 1e-5,
    "sampling_rate": 0.1,
}
CKKS = {"scheme": "ckks", "recipients": {"north": "a" * 64, "south": "b" * 64}}


@pytest.mark.parametrize("name", sorted(OWN_MODELS))
@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"compression": {"name": "int8", "parameters": {}}}, "compression: {} sends models of sites"),
        ({"encryption": CKKS}, "encryption: {} sends models of sites"),
        ({"privacy": DP_SGD}, "dp-sgd does not go with {}"),
    ],
    ids=["compression", "encryption", "privacy"],
)
def test_what_does_not_go_with_models_of_sites_is_refused_in_a_sentence(
    tmp_path: Path, name: str, part: dict[str, object], sentence: str
) -> None:
    root = tmp_path / "coordinator"
    two_sites(root)
    content = make_plan(min_sites=2).to_json()
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**content, **part, "strategy": {"name": name, "parameters": {}}}))
    if (name, *part) == ("braintorrent", "privacy"):
        assert newrun.add(root, path)  # its sites train the network and keep what they trained
        return

    with pytest.raises(CoordinatorError, match=sentence.format(name)):
        newrun.add(root, path)

    with reading(coordinator.open_book(provision.load(root)).engine) as session:
        assert session.scalars(select(FinishedRound)).all() == []


@pytest.mark.parametrize(
    "strategy",
    [{"name": "sorcery", "parameters": {}}, {"name": "fedavg", "parameters": {"mu": 1}}],
    ids=["name", "parameter"],
)
def test_a_strategy_that_nobody_knows_is_refused_before_anything_is_written_down(
    tmp_path: Path, strategy: dict[str, object]
) -> None:
    root = tmp_path / "coordinator"
    two_sites(root)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**make_plan(min_sites=2).to_json(), "strategy": strategy}))

    with pytest.raises(CoordinatorError, match=r"plan\.json: strategy"):
        newrun.add(root, path)
