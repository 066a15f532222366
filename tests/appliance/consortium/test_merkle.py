"""The tree against vectors that are retyped from the certificate-transparency test suites of RFC 6962."""

from __future__ import annotations

import hashlib

import pytest
from pymerkle import InmemoryTree

from appliance.consortium.errors import BlockFormError
from appliance.consortium.merkle import Tree, continues, includes

# Leaves and roots of the reference implementation's test data (certificate-transparency, merkle_tree_test).
LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def entries(count: int) -> list[str]:
    return [hashlib.sha256(bytes([number])).hexdigest() for number in range(count)]


@pytest.mark.parametrize("size", range(1, 9))
def test_the_library_makes_the_roots_of_the_reference_vectors(size: int) -> None:
    tree = InmemoryTree("sha256")
    for leaf in LEAVES[:size]:
        tree.append_entry(bytes.fromhex(leaf))

    assert tree.get_root().hex() == ROOTS[size - 1]


def test_the_empty_tree_has_the_root_of_nothing() -> None:
    assert Tree().root() == EMPTY


def test_audit_path_is_the_one_of_the_reference_vectors() -> None:
    tree = InmemoryTree("sha256")
    for leaf in LEAVES:
        tree.append_entry(bytes.fromhex(leaf))

    path = [one.hex() for one in tree.prove_inclusion(1).path[1:]]

    assert path == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_every_block_is_proved_at_its_place_alone(size: int) -> None:
    tree, hashes = Tree(entries(size)), entries(size)
    for sequence, one in enumerate(hashes, start=1):
        proof = tree.inclusion(sequence)
        assert includes(proof, one, sequence, size, tree.root())
        assert not includes(proof, hashlib.sha256(b"other").hexdigest(), sequence, size, tree.root())
        assert not includes(proof, one, sequence + 1, size, tree.root())
        assert not includes(proof, one, sequence, size, "0" * 64)


@pytest.mark.parametrize("prior", [1, 2, 5, 8, 13])
def test_a_longer_tree_is_proved_to_begin_with_the_shorter(prior: int) -> None:
    tree = Tree(entries(13))
    proof = tree.consistency(prior)

    assert continues(proof, (prior, tree.root(prior)), (13, tree.root()))
    assert not continues(proof, (prior, "0" * 64), (13, tree.root()))
    assert not continues(proof, (prior, tree.root(prior)), (13, "0" * 64))


@pytest.mark.parametrize("proof", [{}, {"type": "inclusion"}, {"type": "x", "path": 3}, {"type": 1}], ids=str)
def test_what_is_no_proof_is_said_to_be_none(proof: dict[str, object]) -> None:
    with pytest.raises(BlockFormError, match="expected one of RFC 6962"):
        includes(proof, "0" * 64, 1, 1, "0" * 64)
    with pytest.raises(BlockFormError, match="expected one of RFC 6962"):
        continues(proof, (1, "0" * 64), (1, "0" * 64))
