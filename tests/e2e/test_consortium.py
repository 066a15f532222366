"""The consortium's ledger in a real federation: what is done to it, the sites find by themselves."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.block import Head
from appliance.consortium.chronicle import Chronicle
from appliance.consortium.merkle import Tree
from appliance.consortium.offers import Offer, write_offer
from appliance.db import coordinator as tables
from appliance.db.engine import reading, writing
from appliance.federation import coordinator, siteapi
from appliance.federation.exchange import Exchange
from appliance.federation.unixclient import UnixClient
from tests.appliance.federation.ring import (
    SITES,
    Member,
    Ring,
    approve_at,
    cloister,
    is_known,
    running_ring,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.book import Book
    from trainer.federation.plan import Plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring")) as running:
        yield running


def verified(member: Member) -> dict[str, Any]:
    """Return what the site's own check says."""
    words = ("ledger", "verify", "--consortium", "--json", "--config", member.config)
    report: dict[str, Any] = json.loads(cloister(*words, check=False))
    return report


def findings(member: Member) -> list[str]:
    return [one["code"] for one in verified(member)["findings"]]


def approve(ring: Ring, plan: Plan, *sites: str) -> None:
    for site in sites:
        member = ring.members[site]
        until(functools.partial(is_known, member, plan), 120.0, f"{site} knows the plan")
        approve_at(member, plan)


def shown_to_one_site_alone(book: Book) -> dict[str, Any]:
    """Make a second history: the coordinator's own blocks and one more, signed with its key."""
    assert book.ledger is not None
    key = book.ledger.signing
    with reading(book.engine) as session:
        stored = chronicle.stored(session)
    chain = Chronicle(book.engine, key).chain()
    last = blocks.read_block(stored[-1].body)
    forged = blocks.seal(
        blocks.Block(
            **{
                **vars(last),
                "sequence": last.sequence + 1,
                "previous": stored[-1].block_hash,
                "prior_root": chain.tree.root(),
                "kind": blocks.RUN,
                "plan": "f" * 64,
                "round": 0,
                "model_in": "",
                "model_out": "e" * 64,
                "contributions": (),
                "members": (),
                "countersigned": (),
            }
        ),
        key,
    )
    tree = Tree([*chain.hashes, forged.block_hash])
    head = Head(tree.size, tree.root())
    signature = blocks.sign_head(chain.federation, head, key, "coordinator")
    offer = Offer(last.sequence, (stored[-1], forged), head, signature)
    return json.loads(json.dumps(write_offer(offer)))  # type: ignore[no-any-return]


def test_every_site_has_the_same_history_though_the_coordinator_was_killed(ring: Ring, tmp_path: Any) -> None:
    plan = ring.submit(total_rounds=2, min_sites=3)
    approve(ring, plan, *SITES)
    ring.until_round(plan, 1, 180.0)
    ring.coordinator.kill()
    ring.coordinator.start()

    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    until(lambda: len({verified(one)["root"] for one in ring.members.values()}) == 1, 60.0, "one history")
    files = []
    for name, member in ring.members.items():
        files += ["--against", tmp_path / name]
        cloister("ledger", "export", tmp_path / name, "--config", member.config)
    for member in ring.members.values():
        cloister("ledger", "verify", "--consortium", *files, "--config", member.config)
    cloister("ledger", "verify", "--coordinator", ring.federation.root, *files)
    shown = json.loads(cloister("ledger", "show", "--json", "--config", ring.members["north"].config))
    rounds = [one for one in shown if one["kind"] == "round"]
    assert [one["model_out"] for one in rounds] == [one.model_sha256 for one in view.rounds]
    receipts = {(body["number"], name): body for name, one in ring.members.items() for body in _bodies(one)}
    for one in rounds:
        for given in one["contributions"]:
            body = receipts[one["round"], given["site"]]
            said = given["statement"]
            assert (said["update"], said["dataset"]) == (body["update_sha256"], body["dataset_sha256"])
    assert {given["site"] for one in shown if one["kind"] == "final" for given in one["contributions"]} == {
        *SITES
    }


def _bodies(member: Member) -> list[dict[str, Any]]:
    return [row.body for row in member.receipts("run-1") if row.body["kind"] == "train"]


def test_a_history_that_is_shown_to_one_site_alone_is_found_by_that_site(ring: Ring) -> None:
    north = ring.members["north"]
    book = coordinator.open_book(ring.federation)
    exchange = Exchange(UnixClient(siteapi.socket_path(north.settings)), lambda: False)
    refused, countersignature = exchange.keep(shown_to_one_site_alone(book))
    book.engine.dispose()
    assert refused is None
    assert countersignature

    plan = ring.submit(total_rounds=1, min_sites=2)
    approve(ring, plan, "south", "west")
    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    assert findings(north) == ["fork"]
    assert not north.rounds(plan.run_id)
    assert [findings(ring.members[name]) for name in ("south", "west")] == [[], []]


def test_a_coordinator_whose_database_was_edited_is_found_by_every_site(ring: Ring) -> None:
    ring.coordinator.kill()
    book = coordinator.open_book(ring.federation)
    with writing(book.engine) as session:
        session.execute(delete(tables.ConsortiumBlock).where(tables.ConsortiumBlock.sequence > 4))
        session.execute(delete(tables.Countersignature))
    book.engine.dispose()
    ring.coordinator.start()

    plan = ring.submit(total_rounds=1, min_sites=2)
    view = ring.until_over(plan, 240.0)

    assert view.state == "dead"
    assert "ledger_broken" in str(view.reason)
    assert view.finished_rounds == 0
    assert [findings(ring.members[name]) for name in SITES] == [["fork"], ["fork"], ["fork"]]
    assert not any(member.rounds(plan.run_id) for member in ring.members.values())
