"""The Merkle tree over the blocks, in the shapes of RFC 6962: leaves and nodes have prefixes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pymerkle import ConsistencyProof, InclusionProof, InmemoryTree, InvalidProof

from appliance.consortium.errors import BlockFormError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALGORITHM: Final = "sha256"


class Tree:
    """A tree that grows by one leaf per block; sizes count from one, roots are 64 hexadecimal digits.

    References
    ----------
    RFC 6962, section 2.1 (Merkle hash tree, audit path, consistency proof).
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._tree = InmemoryTree(ALGORITHM)
        for entry in entries:
            self.append(entry)

    def append(self, block_hash: str) -> None:
        """Add the block of this hash."""
        self._tree.append_entry(bytes.fromhex(block_hash))

    @property
    def size(self) -> int:
        """How many blocks there are."""
        return int(self._tree.get_size())

    def root(self, size: int | None = None) -> str:
        """Return the root of the first ``size`` blocks, of all by default."""
        return bytes(self._tree.get_root(size)).hex()

    def inclusion(self, sequence: int) -> dict[str, Any]:
        """Prove that a block is in the tree of the present size."""
        return dict(self._tree.prove_inclusion(sequence).serialize())

    def consistency(self, size: int) -> dict[str, Any]:
        """Prove that the tree of ``size`` blocks is the beginning of the present one."""
        return dict(self._tree.prove_consistency(size).serialize())


def includes(proof: Mapping[str, Any], block_hash: str, sequence: int, size: int, root: str) -> bool:
    """Whether the proof shows this block at its place in the tree of this size and root.

    Raises
    ------
    BlockFormError
        If the proof is none.
    """
    leaf = bytes(InmemoryTree(ALGORITHM).hash_buff(bytes.fromhex(block_hash)))
    try:
        read = InclusionProof.deserialize(dict(proof))
    except InvalidProof as error:
        raise BlockFormError("inclusion proof: expected one of RFC 6962 over SHA-256") from error
    try:
        read.verify(leaf, bytes.fromhex(root), index=sequence, size=size, algorithm=ALGORITHM)
    except InvalidProof:
        return False
    return True


def continues(proof: Mapping[str, Any], prior: tuple[int, str], later: tuple[int, str]) -> bool:
    """Whether the proof shows that the later tree (size, root) begins with the prior one.

    Raises
    ------
    BlockFormError
        If the proof is none.
    """
    try:
        read = ConsistencyProof.deserialize(dict(proof))
    except InvalidProof as error:
        raise BlockFormError("consistency proof: expected one of RFC 6962 over SHA-256") from error
    try:
        read.verify(
            bytes.fromhex(prior[1]),
            bytes.fromhex(later[1]),
            prior_size=prior[0],
            later_size=later[0],
            algorithm=ALGORITHM,
        )
    except InvalidProof:
        return False
    return True
