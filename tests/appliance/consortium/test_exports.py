from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from appliance.cli import build
from appliance.consortium import exports
from appliance.consortium.errors import BlockFormError
from appliance.consortium.exports import Exported
from appliance.consortium.sources import of_coordinator
from tests.appliance.consortium.scene import Scene, begin

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    made = begin(tmp_path_factory.mktemp("consortium"))
    made.work(3)
    return made


@pytest.fixture
def whole(scene: Scene) -> Exported:
    return of_coordinator(scene.chronicle.engine)


def proof(scene: Scene, path: Path, **changes: Any) -> Path:
    """Write the proof of block 3, with something in it changed."""
    chain = scene.chronicle.chain()
    content = exports.prove(chain, scene.blocks, 3, 2)
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_a_replica_goes_through_a_file_unchanged(whole: Exported, tmp_path: Path) -> None:
    exports.write(tmp_path / "replica.json", whole)

    again = exports.read(tmp_path / "replica.json")

    assert again == whole
    chain, found = exports.check(again)
    assert (chain.size, found, len(again.heads)) == (5, [], 3)


def test_a_replica_without_its_tail_is_found_by_the_heads_in_its_file(whole: Exported) -> None:
    _, found = exports.check(Exported(whole.blocks[:-1], whole.heads))

    assert {one.code for one in found} == {"tail"}
    assert {one.sequence for one in found} == {5}


def test_two_replicas_that_differ_are_found_by_comparing_them(
    scene: Scene, whole: Exported, tmp_path: Path
) -> None:
    other = begin(tmp_path / "other", scene.chronicle.key, scene.keys)
    other.work(2)
    chain, _ = exports.check(whole)

    theirs = of_coordinator(other.chronicle.engine)

    assert [one.code for one in exports.compare(chain, whole.blocks, theirs)] == ["fork"]
    assert list(exports.compare(chain, whole.blocks, whole)) == []
    assert list(exports.compare(chain, whole.blocks, Exported(whole.blocks[:3], ()))) == []
    short, _ = exports.check(Exported(whole.blocks[:3], ()))
    assert [one.code for one in exports.compare(short, whole.blocks[:3], whole)] == ["tail"]


def test_a_proof_is_checked_without_a_database(scene: Scene, tmp_path: Path) -> None:
    path = proof(scene, tmp_path / "proof.json")

    block, head, found, _ = exports.check_proof(path)

    assert (block.sequence, block.kind, head.size, found) == (3, "round", 5, [])
    said = CliRunner().invoke(build(), ["ledger", "check-proof", str(path)])
    assert said.exit_code == 0
    assert "block 3 (round) is among the 5 blocks" in said.output


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"head": {"size": 5, "root": "0" * 64}}, "inclusion"),
        ({"prior": {"size": 2, "root": "0" * 64}}, "consistency"),
        ({"sequence": 4}, "sequence"),
        (
            {"countersigned": [{"site": "north", "size": 5, "root": "0" * 64, "signature": "0" * 128}]},
            "counter",
        ),
    ],
    ids=["head", "prior", "sequence", "countersignature"],
)
def test_a_proof_of_something_else_is_found(
    scene: Scene, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    path = proof(scene, tmp_path / "proof.json", **changes)

    _, _, found, _ = exports.check_proof(path)

    assert any(one.code.startswith(code) for one in found)
    said = CliRunner().invoke(build(), ["ledger", "check-proof", str(path)])
    assert said.exit_code == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "cloister-consortium-proof-1"}', "\x00", '{"a":' * 9000],
    ids=range(6),
)
def test_a_file_that_is_no_proof_or_replica_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)

    with pytest.raises(BlockFormError, match="expected"):
        exports.check_proof(path)
    with pytest.raises(BlockFormError, match="expected"):
        exports.read(path)
