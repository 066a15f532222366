from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.block import Signed
from appliance.consortium.chain import Chain
from appliance.consortium.errors import BlockFormError
from appliance.consortium.followed import MOST, following
from appliance.db import coordinator as tables
from appliance.db.engine import reading, writing
from tests.appliance.consortium.scene import PLAN, Scene, begin, digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.consortium.block import Block


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    begun = begin(tmp_path / "coordinator")
    yield begun
    begun.chronicle.engine.dispose()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blocks that are read from now on."""
    seen: list[str] = []
    real = blocks.read_block

    def noted(body: str) -> Block:
        seen.append(body)
        return real(body)

    monkeypatch.setattr(blocks, "read_block", noted)
    return seen


def follow(scene: Scene, stored: list[Signed] | None = None, replica: int = 0) -> tuple[int, str]:
    """Return size and root of what was followed."""
    with (
        reading(scene.chronicle.engine) as session,
        following(session, replica, scene.blocks if stored is None else stored) as chain,
    ):
        return chain.size, chain.tree.root()


def replayed(stored: list[Signed]) -> tuple[int, str]:
    chain = Chain.replay(stored)
    return chain.size, chain.tree.root()


def test_only_what_is_new_is_read_again(scene: Scene, read: list[str]) -> None:
    scene.work(5)
    assert follow(scene) == replayed(scene.blocks)
    scene.work(1, start=6)
    before, stored = len(scene.blocks), scene.blocks
    read.clear()

    assert follow(scene) == (before, Chain.replay(stored).tree.root())

    assert len(read) == before  # all of it by replay(), none by following(): work() had taken it further


def test_a_block_that_was_changed_or_taken_away_is_noticed(scene: Scene) -> None:
    scene.work(4)
    stored = scene.blocks
    follow(scene)
    changed = [
        *stored[:1],
        Signed(stored[1].body.replace(digest("model 0"), digest("other")), stored[1].signature),
        *stored[2:],
    ]

    assert follow(scene, changed) == replayed(changed) != replayed(stored)
    assert follow(scene, stored[:-2]) == replayed(stored[:-2])
    assert follow(scene, stored) == replayed(stored)
    with pytest.raises(BlockFormError):
        follow(scene, [*stored[:1], Signed("{}", ""), *stored[2:]])
    assert follow(scene, stored) == replayed(stored)


def test_a_block_whose_transaction_was_undone_is_not_followed(scene: Scene) -> None:
    scene.work(2)
    before = replayed(scene.blocks)
    entry = chronicle.Entry(blocks.ROUND, PLAN, 3, digest("model 2"), digest("model 3"))

    with writing(scene.chronicle.engine) as session:
        chronicle.append(session, scene.chronicle.key, entry)
        session.rollback()

    assert follow(scene) == before
    with writing(scene.chronicle.engine) as session:
        chronicle.append(session, scene.chronicle.key, entry)
    assert follow(scene) == replayed(scene.blocks) != before


def test_who_asks_meanwhile_gets_a_chain_of_its_own(scene: Scene) -> None:
    scene.work(2)
    stored = scene.blocks
    with reading(scene.chronicle.engine) as session, following(session, 0, stored) as one:
        with following(session, 0, stored[:-1]) as other:
            assert other is not one
            assert other.size == one.size - 1
        assert one.size == len(stored)
    assert follow(scene) == replayed(stored)


def test_few_chains_are_remembered_and_each_for_itself(scene: Scene) -> None:
    scene.work(2)
    stored = scene.blocks
    for number in range(2 * MOST):
        assert follow(scene, stored[: 1 + number % 3], replica=number) == replayed(stored[: 1 + number % 3])


def test_a_coordinator_s_database_that_was_changed_is_not_continued(scene: Scene) -> None:
    """What was followed before is compared with what is stored each time."""
    scene.work(3)
    with writing(scene.chronicle.engine) as session:
        session.execute(
            update(tables.ConsortiumBlock)
            .where(tables.ConsortiumBlock.sequence == 2)
            .values(body=scene.blocks[1].body.replace(digest("model 0"), digest("other")))
        )

    assert follow(scene) == replayed(scene.blocks)
