from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, select, update

from appliance import node
from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.block import Head, MemberChange, Signed
from appliance.consortium.chain import FINALIZE, TRAIN, Chain
from appliance.consortium.chronicle import Entry
from appliance.consortium.errors import BlockFormError, ConsortiumError
from appliance.consortium.merkle import Tree
from appliance.consortium.offers import (
    BROKEN,
    Countersignature,
    Offer,
    read_countersignature,
    read_offer,
    write_offer,
)
from appliance.consortium.replica import BEHIND, Held, Replica, current, open_findings, was_counted
from appliance.db import coordinator as tables
from appliance.db.engine import reading, writing
from appliance.db.research import ConsortiumBlock, ResearchLedgerEntry
from appliance.ledger import verify
from tests.appliance.consortium.scene import PLAN, Scene, begin, digest, resealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.node import ResearchZone
    from appliance.settings import Settings


@pytest.fixture
def zone(make_node: Callable[..., Settings]) -> Iterator[ResearchZone]:
    opened = node.open_research(make_node(federation={"site": "observer"}))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def replica(zone: ResearchZone) -> Replica:
    return Replica(zone)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return begin(tmp_path / "coordinator")


def finding(replica: Replica) -> tuple[str, int]:
    with reading(replica.zone.engine) as session:
        [found] = open_findings(session)
        return found.code, found.sequence


def is_broken(replica: Replica, scene: Scene, first: int = 1) -> bool:
    kept = replica.receive(scene.offer(first))
    return isinstance(kept, Held) and kept.code == BROKEN


def test_a_site_keeps_every_block_and_countersigns_the_head(replica: Replica, scene: Scene) -> None:
    scene.work(3)

    kept = replica.receive(read_offer(json.loads(json.dumps(write_offer(scene.offer())))))

    assert isinstance(kept, Countersignature)
    chain = scene.chronicle.chain()
    assert kept.head == chain.head
    assert blocks.verified(kept.key, kept.signature, blocks.head_message(chain.federation, kept.head, "site"))
    with reading(replica.zone.engine) as session:
        assert current(session) == scene.blocks
        kinds = list(session.scalars(select(ResearchLedgerEntry.kind)))
    assert kinds.count("consortium.countersigned") == 1
    assert replica.receive(scene.offer(4)) == kept  # asked twice, the same answer
    public = replica.zone.keys.signing.public_key()
    assert verify(replica.zone.engine, public).ok


def test_blocks_come_in_parts_and_the_head_is_reached_with_the_last(replica: Replica, scene: Scene) -> None:
    scene.work(4)
    whole = scene.offer()

    first = replica.receive(replace(whole, blocks=whole.blocks[:3]))
    gap = replica.receive(scene.offer(6))
    last = replica.receive(scene.offer(3))

    assert isinstance(first, Countersignature)
    assert first.head.size == 3
    assert isinstance(gap, Countersignature)
    assert gap.head.size == 3
    assert isinstance(last, Countersignature)
    assert last.head == whole.head


def test_a_round_runs_on_the_model_of_the_ledger_alone(replica: Replica, scene: Scene) -> None:
    assert isinstance(replica.receive(replace(scene.offer(), blocks=())), Held)
    scene.work(2)
    replica.receive(scene.offer())

    assert replica.hold(PLAN, TRAIN, 3, digest("model 2")) is None
    assert replica.hold(PLAN, FINALIZE, 2, digest("model 2")) is None
    behind = replica.hold(PLAN, TRAIN, 4, digest("model 3"))
    assert behind is not None
    assert behind.code == BEHIND
    other = replica.hold(PLAN, TRAIN, 3, digest("another"))
    assert other is not None
    assert other.code == BROKEN
    assert finding(replica) == ("model", 4)
    assert replica.hold(PLAN, TRAIN, 3, digest("model 2")) is not None  # until a person has looked


def test_an_update_is_counted_or_not_or_nobody_knows_yet(replica: Replica, scene: Scene) -> None:
    scene.round(1, tuple(scene.contribution(site, 1, digest("model 0")) for site in ("north", "south")))
    replica.receive(scene.offer())

    with reading(replica.zone.engine) as session:
        assert was_counted(session, PLAN, 1, "north") is True
        assert was_counted(session, PLAN, 1, "west") is False
        assert was_counted(session, PLAN, 2, "north") is None
        assert was_counted(session, digest("another plan"), 1, "north") is None


def test_a_second_history_after_the_first_is_found_and_nothing_of_it_is_kept(
    replica: Replica, scene: Scene, tmp_path: Path
) -> None:
    scene.work(3)
    replica.receive(scene.offer())
    other = begin(tmp_path / "other", scene.chronicle.key, scene.keys)
    other.work(4)

    assert is_broken(replica, other)

    assert finding(replica) == ("fork", 1)
    with reading(replica.zone.engine) as session:
        assert current(session) == scene.blocks
    assert is_broken(replica, scene)  # even the right history, until a person has looked


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_a_coordinator_that_removed_its_newest_blocks_is_found_at_its_next_block(
    replica: Replica, scene: Scene, kept: int
) -> None:
    scene.work(3)
    replica.receive(scene.offer())
    with writing(scene.chronicle.engine) as session:
        session.execute(delete(tables.ConsortiumBlock).where(tables.ConsortiumBlock.sequence > kept))
        session.execute(delete(tables.Countersignature))
    later = Scene(type(scene.chronicle)(scene.chronicle.engine, scene.chronicle.key), scene.keys)
    later.round(kept - 1)

    assert is_broken(replica, later, kept + 1)
    assert finding(replica) == ("fork", kept + 1)


def test_two_sites_that_are_shown_two_histories_find_it_within_one_round(
    make_node: Callable[..., Settings], replica: Replica, scene: Scene, tmp_path: Path
) -> None:
    """North is shown one history and signs it; another site, shown the other one, sees what north signed."""
    scene.work(1)
    other = begin(tmp_path / "other", scene.chronicle.key, scene.keys)
    with writing(other.chronicle.engine) as session:
        session.execute(delete(tables.ConsortiumBlock))
        for sequence, signed in enumerate(scene.blocks, start=1):
            session.add(
                tables.ConsortiumBlock(sequence=sequence, body=signed.body, signature=signed.signature)
            )
    other = Scene(type(other.chronicle)(other.chronicle.engine, scene.chronicle.key), scene.keys)
    assert isinstance(replica.receive(other.offer()), Countersignature)
    north = (scene.contribution("north", 2, digest("model 1")),)
    scene.round(2, north)
    other.round(2, (other.contribution("south", 2, digest("model 1")),))
    assert isinstance(replica.receive(other.offer()), Countersignature)

    # The next round: north signs under its history; the coordinator counts it in the one shown here.
    signed_elsewhere = scene.contribution("north", 3, digest("model 2"))
    other.round(3, (signed_elsewhere,))

    stored = other.blocks
    offer = replace(other_offer(other, stored), blocks=tuple(stored))
    kept = replica.receive(offer)
    assert isinstance(kept, Held)
    assert finding(replica) == ("fork", 4)


def other_offer(scene: Scene, stored: list[Signed]) -> Offer:
    """Offer what this coordinator's own check would not let it offer."""
    head = Head(len(stored), Tree(one.block_hash for one in stored).root())
    federation = blocks.federation_id(blocks.public_hex(scene.chronicle.key.public_key()))
    return Offer(
        1, tuple(stored), head, blocks.sign_head(federation, head, scene.chronicle.key, "coordinator")
    )


def test_a_contribution_in_this_sites_name_that_it_did_not_make_is_found(
    make_node: Callable[..., Settings], tmp_path: Path
) -> None:
    opened = node.open_research(make_node(federation={"site": "north"}))
    keys = {"north": opened.keys.signing, "south": Ed25519PrivateKey.generate()}
    scene = begin(tmp_path / "coordinator", None, keys)
    replica = Replica(opened)
    assert isinstance(replica.receive(scene.offer()), Countersignature)
    scene.round(1)  # signed with north's key, but of no receipt of north: the key was stolen

    assert is_broken(replica, scene)
    assert finding(replica) == ("foreign_contribution", 3)
    opened.engine.dispose()


def test_another_key_for_this_site_is_found(make_node: Callable[..., Settings], scene: Scene) -> None:
    opened = node.open_research(make_node(federation={"site": "north"}))

    assert is_broken(Replica(opened), scene)
    assert finding(Replica(opened)) == ("own_key", 1)
    opened.engine.dispose()


def test_another_key_of_a_known_member_is_found(replica: Replica, scene: Scene) -> None:
    replica.receive(scene.offer())
    with writing(scene.chronicle.engine) as session:
        change = (MemberChange("south", "active", digest("another key")),)
        chain = Chain.replay(chronicle.stored(session))
        chronicle._append(session, scene.chronicle.key, chain, Entry(blocks.MEMBERS, members=change))

    kept = replica.receive(other_offer(scene, scene.blocks))

    assert isinstance(kept, Held)
    assert finding(replica) == ("member_key", 3)


def test_a_replica_that_somebody_edited_here_is_found(replica: Replica, scene: Scene) -> None:
    scene.work(2)
    replica.receive(scene.offer())
    stored = scene.blocks
    other = resealed(stored[2], scene.chronicle.key, at="2020-01-01T00:00:00.000000+00:00")
    with writing(replica.zone.engine) as session:
        session.execute(update(ConsortiumBlock).where(ConsortiumBlock.sequence == 3).values(body=other.body))

    assert is_broken(replica, scene, 4)
    assert finding(replica) == ("replica", 4)


def test_a_person_resolves_a_finding_and_may_take_up_the_history_anew(
    replica: Replica, scene: Scene, tmp_path: Path
) -> None:
    scene.work(2)
    replica.receive(scene.offer())
    other = begin(tmp_path / "other", None, scene.keys)
    other.work(1)
    assert is_broken(replica, other)
    with reading(replica.zone.engine) as session:
        [found] = open_findings(session)
        found_id = found.id

    with pytest.raises(ConsortiumError, match="no such open finding"):
        replica.resolve("0" * 32, "user-7", adopt=False)
    replica.resolve(found_id, "user-7", adopt=True)

    assert isinstance(replica.receive(other.offer()), Countersignature)
    with reading(replica.zone.engine) as session:
        assert current(session) == other.blocks
        assert len(list(session.scalars(select(ConsortiumBlock)))) == len(scene.blocks) + len(other.blocks)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"first": 1, "blocks": "x", "head": {}, "signature": ""},
        {"first": -1, "blocks": [], "head": {"size": 1, "root": ""}, "signature": ""},
        {"first": 1, "blocks": [{"body": 1, "signature": ""}], "head": {"size": 1, "root": ""}},
        {"first": 1, "blocks": [], "head": {"size": True, "root": ""}, "signature": ""},
        {"first": 1, "blocks": [], "head": {"size": 1, "root": "\ud800"}, "signature": ""},
        {"first": 1, "blocks": [{}] * 5000, "head": {"size": 1, "root": ""}, "signature": ""},
    ],
    ids=["empty", "text", "negative", "number-as-body", "true-as-size", "surrogate", "too-many"],
)
def test_what_is_no_offer_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(BlockFormError, match="expected"):
        read_offer(value)
    with pytest.raises(BlockFormError, match="expected"):
        read_countersignature(value)
