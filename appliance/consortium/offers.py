"""What coordinator and site hand each other: blocks with a signed head, and a countersignature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from appliance.consortium.block import Head, Signed
from appliance.consortium.errors import BlockFormError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_OFFER: Final = 384 * 1024
MAX_BLOCKS: Final = 4096
BROKEN: Final = "ledger_broken"  # a site's answer to an offer that does not continue what it holds


@dataclass(frozen=True)
class Offer:
    """Blocks one after the other, the first of them number ``first``, and the coordinator's newest head."""

    first: int
    blocks: tuple[Signed, ...]
    head: Head
    signature: str


@dataclass(frozen=True)
class Countersignature:
    """A site's word for a head, with the public key it is to be checked with (hexadecimal)."""

    head: Head
    signature: str
    key: str


def write_offer(offer: Offer) -> dict[str, Any]:
    """Return an offer as JSON takes it."""
    return asdict(offer)


def read_offer(value: Mapping[str, Any]) -> Offer:
    """Read an offer.

    Raises
    ------
    BlockFormError
        If it is not one; what its blocks say is checked by the chain.
    """
    listed = value.get("blocks")
    first = value.get("first")
    if not isinstance(listed, list) or len(listed) > MAX_BLOCKS or not _is_count(first):
        raise BlockFormError("offer: expected a number and a list of blocks")
    return Offer(int(first or 0), tuple(_signed(one) for one in listed), *_signed_head(value))


def read_countersignature(value: Mapping[str, Any]) -> Countersignature:
    """Read a countersignature; raises BlockFormError."""
    head, signature = _signed_head(value)
    return Countersignature(head, signature, _text(value, "key", 64))


def chunk(stored: list[Signed], first: int, head: Head, signature: str) -> Offer:
    """Offer as many blocks from ``first`` on as one message takes; ``stored`` begins with block 1."""
    taken: list[Signed] = []
    size = 0
    for signed in stored[first - 1 :]:
        size += len(signed.body) + len(signed.signature) + 64
        if taken and (size > MAX_OFFER or len(taken) == MAX_BLOCKS):
            break
        taken.append(signed)
    return Offer(first, tuple(taken), head, signature)


def _signed(value: object) -> Signed:
    if not isinstance(value, dict) or set(value) != {"body", "signature"}:
        raise BlockFormError("offer: expected blocks of body and signature")
    return Signed(_text(value, "body", MAX_OFFER), _text(value, "signature", 128))


def _signed_head(value: Mapping[str, Any]) -> tuple[Head, str]:
    head = value.get("head")
    if not isinstance(head, dict) or set(head) != {"size", "root"} or not _is_count(head["size"]):
        raise BlockFormError("offer: expected a head of size and root")
    return Head(head["size"], _text(head, "root", 64)), _text(value, "signature", 128)


def _text(value: Mapping[str, Any], name: str, longest: int) -> str:
    text = value.get(name)
    if not isinstance(text, str) or len(text) > longest or not text.isascii():
        raise BlockFormError(f"offer: {name}: expected a short text")
    return text


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
