from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.consortium import block as blocks
from appliance.consortium.block import Head, MemberChange, Signed
from appliance.consortium.chain import audit
from appliance.consortium.merkle import Tree
from tests.appliance.consortium.scene import Scene, begin, digest, edited, resealed

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    made = begin(tmp_path_factory.mktemp("consortium"))
    made.work(4)
    return made


def codes(stored: list[Signed]) -> list[str]:
    return [finding.code for finding in audit(stored)[1]]


def test_an_honest_chain_has_no_finding(scene: Scene) -> None:
    chain, found = audit(scene.blocks)

    assert found == []
    assert chain.size == 6  # members, run, four rounds
    assert chain.models[("c" * 64, 4)] == digest("model 4")
    assert all(state == "active" for state, _ in chain.members.values())


def test_every_round_carries_the_heads_that_the_sites_countersigned_before(scene: Scene) -> None:
    [*_, last] = [blocks.read_block(signed.body) for signed in scene.blocks]

    assert [(one.site, one.size) for one in last.countersigned] == [("north", 5), ("south", 5), ("west", 5)]
    assert [one.statement.head_size for one in last.contributions if one.statement is not None] == [5, 5, 5]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_removed_repeated_or_exchanged_block_is_found(scene: Scene, data: st.DataObject) -> None:
    stored = scene.blocks
    at = data.draw(st.integers(0, len(stored) - 2))
    to = data.draw(st.integers(0, len(stored) - 1).filter(lambda one: one != at))
    moved = list(stored)
    moved[at], moved[to] = moved[to], moved[at]

    assert codes(stored[:at] + stored[at + 1 :])
    assert codes([*stored[: to + 1], stored[at], *stored[to + 1 :]])
    assert codes(moved)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_changed_character_of_a_block_or_signature_is_found(scene: Scene, data: st.DataObject) -> None:
    stored = list(scene.blocks)
    at = data.draw(st.integers(0, len(stored) - 1))
    field = data.draw(st.sampled_from(["body", "signature"]))
    text = getattr(stored[at], field)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != text[place]))
    stored[at] = replace(stored[at], **{field: text[:place] + other + text[place + 1 :]})

    assert codes(stored)


def forged(scene: Scene, place: int, **changes: Any) -> list[Signed]:
    """Change a block and sign it and all that follow, as the coordinator could."""
    stored = list(scene.blocks)
    stored[place] = resealed(stored[place], scene.chronicle.key, **changes)
    tree = Tree(one.block_hash for one in stored[:place])
    for later in range(place + 1, len(stored)):
        tree.append(stored[later - 1].block_hash)
        stored[later] = resealed(
            stored[later],
            scene.chronicle.key,
            previous=stored[later - 1].block_hash,
            prior_root=tree.root(),
        )
    return stored


@pytest.mark.parametrize("at", range(5))
def test_a_history_that_the_coordinator_signs_anew_is_found_by_what_sites_signed(
    scene: Scene, at: int
) -> None:
    stored = forged(scene, at, at="2020-01-01T00:00:00.000000+00:00")

    assert "fork" in codes(stored)


def _other_samples(scene: Scene) -> dict[str, Any]:
    last = blocks.read_block(scene.blocks[-1].body)
    first, *rest = last.contributions
    assert first.statement is not None
    more = replace(first, samples=99, statement=replace(first.statement, samples=99))
    return {"contributions": (more, *rest)}


def _unsigned(scene: Scene) -> dict[str, Any]:
    last = blocks.read_block(scene.blocks[-1].body)
    first, *rest = last.contributions
    return {"contributions": (replace(first, statement=None, signature=""), *rest)}


def _anothers(scene: Scene) -> dict[str, Any]:
    last = blocks.read_block(scene.blocks[-1].body)
    first, second, *rest = last.contributions
    return {"contributions": (replace(first, statement=second.statement), second, *rest)}


def _from_before(scene: Scene) -> dict[str, Any]:
    last, before = (blocks.read_block(scene.blocks[at].body) for at in (-1, -2))
    return {"contributions": (before.contributions[0], *last.contributions[1:])}


def _twice(scene: Scene) -> dict[str, Any]:
    last = blocks.read_block(scene.blocks[-1].body)
    return {"contributions": (*last.contributions, last.contributions[0])}


def _counted_more(scene: Scene) -> dict[str, Any]:
    last = blocks.read_block(scene.blocks[-1].body)
    return {"contributions": (replace(last.contributions[0], samples=11), *last.contributions[1:])}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_other_samples, "contribution"),
        (_unsigned, "contribution"),
        (_anothers, "contribution"),
        (_from_before, "contribution"),
        (_twice, "contribution"),
        (_counted_more, "contribution"),
        (lambda _: {"model_in": digest("another")}, "model"),
        (lambda _: {"round": 7}, "model"),
        (lambda _: {"prior_root": digest("another")}, "root"),
        (lambda _: {"previous": digest("another")}, "link"),
        (lambda _: {"sequence": 9}, "sequence"),
        (lambda _: {"federation": digest("another")}, "federation"),
        (lambda _: {"coordinator": digest("another")}, "federation"),
        (lambda _: {"members": (MemberChange("north", "active", digest("key")),)}, "member_key"),
    ],
    ids=[
        "more-samples",
        "unsigned",
        "signed-by-another",
        "signed-for-another-round",
        "twice",
        "counted-more-than-signed",
        "model",
        "round",
        "root",
        "link",
        "sequence",
        "federation",
        "coordinator",
        "member-key",
    ],
)
def test_what_a_coordinator_makes_up_in_a_new_block_is_found(
    scene: Scene, change: Callable[[Scene], dict[str, Any]], code: str
) -> None:
    stored = scene.blocks
    stored[-1] = resealed(stored[-1], scene.chronicle.key, **change(scene))

    assert code in codes(stored)


def test_a_block_under_another_key_is_found(scene: Scene) -> None:
    stored = scene.blocks
    stored[-1] = resealed(stored[-1], Ed25519PrivateKey.generate())

    assert codes(stored) == ["signature"]


def test_what_comes_as_a_block_and_is_none_is_named_without_its_values(scene: Scene) -> None:
    stored = scene.blocks
    for bad in (
        edited(stored[2], kind="patient-name"),
        edited(stored[2], surprise="patient-name"),
        edited(stored[2], round=-1),
        edited(stored[2], contributions="patient-name"),
        Signed('{"a":' * 100_000, "00"),
        Signed("x" * 300_000, "00"),
        Signed("[]", "00"),
    ):
        _, [found] = audit([*stored[:2], bad])
        assert (found.code, found.sequence) == ("form", 3)
        assert "patient-name" not in found.message


def test_a_cut_off_tail_is_found_against_a_countersigned_head(scene: Scene) -> None:
    whole, _ = audit(scene.blocks)
    key = scene.keys["north"]
    signature = blocks.sign_head(whole.federation, whole.head, key, "site")
    said = blocks.Countersigned("north", whole.head.size, whole.head.root, signature)
    short, found = audit(scene.blocks[:-1])

    assert found == []
    assert [one.code for one in short.check_countersigned(said, whole=True)] == ["tail"]
    assert list(whole.check_countersigned(said, whole=True)) == []


def test_a_head_of_the_coordinator_over_another_tree_is_a_fork(scene: Scene) -> None:
    chain, _ = audit(scene.blocks)
    other = Head(chain.size, digest("another"))
    signature = blocks.sign_head(chain.federation, other, scene.chronicle.key, "coordinator")

    assert [one.code for one in chain.check_head(other, signature)] == ["fork"]
    assert [one.code for one in chain.check_head(chain.head, signature)] == ["head_signature"]
