"""Blocks, heads, contributions and steps of sharing: what is signed, in one canonical form."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from appliance.consortium.errors import BlockFormError
from appliance.federation.joincode import SITE_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION: Final = "cloister-consortium-1"
GENESIS: Final = "0" * 64
MEMBERS: Final = "members"
RUN: Final = "run"
ROUND: Final = "round"
FINAL: Final = "final"
SHARE: Final = "share"
KINDS: Final = (MEMBERS, RUN, ROUND, FINAL, SHARE)
STEPS: Final = ("given", "received", "withdrawn", "erased")
STATES: Final = ("active", "left", "expelled")
MAX_BODY: Final = 256 * 1024
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
_MAX_COUNT: Final = 2**31 - 1


@dataclass(frozen=True)
class Head:
    """A state of the chain: number of blocks and root of the Merkle tree over them."""

    size: int
    root: str


@dataclass(frozen=True)
class Statement:
    """What a site says it contributed to one round, and which history it had before its eyes.

    ``update`` and ``dataset`` are empty where nothing left or no data was used; ``head_size`` and
    ``head_root`` name the newest head that the site had checked. ``norm`` is the update's, see
    :func:`stated_norm`; the text names it only where there is one.
    """

    federation: str
    site: str
    kind: str
    number: int
    plan: str
    model: str
    update: str
    receipt: str
    dataset: str
    samples: int
    head_size: int
    head_root: str
    norm: int | None = None

    @property
    def longest(self) -> float | None:
        """The most that the update's L2 norm is; None where none was stated."""
        return None if self.norm is None else self.norm / 1000


@dataclass(frozen=True)
class Contribution:
    """A site's part in a round as the coordinator counted it; refused ones may lack a statement."""

    site: str
    accepted: bool
    samples: int
    statement: Statement | None
    signature: str


@dataclass(frozen=True)
class Share:
    """A step of de-identified studies on their way between two sites, as the site says it that takes it.

    ``manifest`` is the SHA-256 of the list of files, which travels with them and names the terms too.
    """

    federation: str
    site: str
    step: str
    giver: str
    receiver: str
    manifest: str
    studies: int
    instances: int
    head_size: int
    head_root: str


@dataclass(frozen=True)
class SignedShare:
    """A step with the signature of its site."""

    share: Share
    signature: str


@dataclass(frozen=True)
class MemberChange:
    """A member's state and key from this block on; an empty key is not known yet."""

    site: str
    state: str
    key: str


@dataclass(frozen=True)
class Countersigned:
    """A head that a site countersigned."""

    site: str
    size: int
    root: str
    signature: str


@dataclass(frozen=True)
class Block:
    """One block. ``prior_root`` is the root over all blocks before it; a run's ``round`` is its start.

    Its text names ``share`` only where there is one.
    """

    version: str
    federation: str
    coordinator: str
    sequence: int
    at: str
    previous: str
    prior_root: str
    kind: str
    plan: str
    round: int
    model_in: str
    model_out: str
    contributions: tuple[Contribution, ...]
    members: tuple[MemberChange, ...]
    countersigned: tuple[Countersigned, ...]
    share: SignedShare | None = None


@dataclass(frozen=True)
class Signed:
    """A block as it is kept and sent: its canonical text, and the coordinator's signature over its hash."""

    body: str
    signature: str

    @property
    def block_hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.body.encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return the one text of a value."""
    content = asdict(value)
    if content.get("share", ...) is None:
        del content["share"]
    said = [one["statement"] for one in content.get("contributions", ())]
    for statement in [content] if isinstance(value, Statement) else said:
        if statement is not None and statement["norm"] is None:
            del statement["norm"]
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def stated_norm(norm: float) -> int | None:
    """Return the L2 norm of an update as sites state it: in thousandths, at most a quarter of an octave more.

    The others need a bound, not the number. None where it is too large to be stated.
    """
    if norm <= 0:
        return 0
    if not norm <= _MAX_COUNT / 2000:
        return None
    quarters = math.ceil(4 * math.log2(norm * 1000))
    return max(math.ceil(2 ** (quarters / 4)), math.ceil(norm * 1000))


def federation_id(coordinator: str) -> str:
    """Return a federation's id, which is that of its coordinator's key."""
    return hashlib.sha256(bytes.fromhex(coordinator)).hexdigest()


def public_hex(key: Ed25519PublicKey) -> str:
    """Return a public key's 32 bytes as hexadecimal."""
    return key.public_bytes_raw().hex()


def seal(block: Block, key: Ed25519PrivateKey) -> Signed:
    """Sign a block."""
    body = canonical(block)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return Signed(body, key.sign(_block_message(digest)).hex())


def is_sealed_by(signed: Signed, key: str) -> bool:
    """Whether the coordinator of this key signed the block."""
    return verified(key, signed.signature, _block_message(signed.block_hash))


def sign_head(federation: str, head: Head, key: Ed25519PrivateKey, role: str) -> str:
    """Sign a head, as ``coordinator`` or as the ``site`` that countersigns it."""
    return key.sign(head_message(federation, head, role)).hex()


def head_message(federation: str, head: Head, role: str) -> bytes:
    """Return what is signed of a head."""
    return f"{VERSION}:head:{role}:{federation}:{head.size}:{head.root}".encode()


def sign_statement(statement: Statement, key: Ed25519PrivateKey) -> str:
    """Sign what a site says it contributed."""
    return key.sign(statement_message(statement)).hex()


def statement_message(statement: Statement) -> bytes:
    """Return what is signed of a contribution."""
    return f"{VERSION}:contribution:{canonical(statement)}".encode()


def sign_share(share: Share, key: Ed25519PrivateKey) -> SignedShare:
    """Sign a step of sharing."""
    return SignedShare(share, key.sign(share_message(share)).hex())


def share_message(share: Share) -> bytes:
    """Return what is signed of a step of sharing."""
    return f"{VERSION}:share:{canonical(share)}".encode()


def verified(key: str, signature: str, message: bytes) -> bool:
    """Whether a signature is of this key and message; both are hexadecimal."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_block(body: str) -> Block:
    """Read a block's text.

    Raises
    ------
    BlockFormError
        If it is not the canonical text of a block.
    """
    if len(body) > MAX_BODY:
        raise BlockFormError(f"block: expected at most {MAX_BODY} characters")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BlockFormError("block: expected JSON") from error
    if isinstance(value, dict):
        value.setdefault("share", None)
    content = _shape(Block, value, "block")
    content["contributions"] = tuple(_contribution(one) for one in _list(content, "contributions"))
    content["members"] = tuple(_member(one) for one in _list(content, "members"))
    content["countersigned"] = tuple(read_countersigned(one) for one in _list(content, "countersigned"))
    content["share"] = None if content["share"] is None else read_share(content["share"])
    block = Block(**content)
    _texts(block, "block", _HASH, "federation", "coordinator", "previous", "prior_root")
    _texts(block, "block", re.compile(f"(?:{_HASH.pattern})?"), "plan", "model_in", "model_out")
    _texts(block, "block", _AT, "at")
    _counts(block, "block", "sequence", "round")
    if block.kind not in KINDS or block.version != VERSION:
        raise BlockFormError("block: expected a kind and a version that this program knows")
    if canonical(block) != body:
        raise BlockFormError("block: expected its canonical text")
    return block


def read_statement(value: object) -> Statement:
    """Read a site's statement; raises BlockFormError."""
    if isinstance(value, dict):
        value = {"norm": None, **value}
    statement = Statement(**_shape(Statement, value, "statement"))
    _texts(statement, "statement", _HASH, "federation", "plan", "model", "receipt", "head_root")
    _texts(statement, "statement", re.compile(f"(?:{_HASH.pattern})?"), "update", "dataset")
    _texts(statement, "statement", SITE_NAME, "site")
    _texts(statement, "statement", re.compile("train|finalize"), "kind")
    _counts(statement, "statement", "number", "samples", "head_size")
    if statement.norm is not None:
        _counts(statement, "statement", "norm")
    return statement


def read_share(value: object) -> SignedShare:
    """Read a signed step of sharing; raises BlockFormError."""
    content = _shape(SignedShare, value, "share")
    share = Share(**_shape(Share, content["share"], "share"))
    _texts(share, "share", _HASH, "federation", "manifest", "head_root")
    _texts(share, "share", SITE_NAME, "site", "giver", "receiver")
    _texts(share, "share", re.compile("|".join(STEPS)), "step")
    _counts(share, "share", "studies", "instances", "head_size")
    read = SignedShare(share, content["signature"])
    _texts(read, "share", _SIGNATURE, "signature")
    return read


def read_countersigned(value: object) -> Countersigned:
    """Read a countersigned head; raises BlockFormError."""
    read = Countersigned(**_shape(Countersigned, value, "countersigned head"))
    _texts(read, "countersigned head", _HASH, "root")
    _texts(read, "countersigned head", SITE_NAME, "site")
    _texts(read, "countersigned head", _SIGNATURE, "signature")
    _counts(read, "countersigned head", "size")
    return read


def _contribution(value: object) -> Contribution:
    content = _shape(Contribution, value, "contribution")
    if content["statement"] is not None:
        content["statement"] = read_statement(content["statement"])
    read = Contribution(**content)
    _texts(read, "contribution", SITE_NAME, "site")
    _texts(read, "contribution", re.compile(f"(?:{_SIGNATURE.pattern})?"), "signature")
    _counts(read, "contribution", "samples")
    if not isinstance(read.accepted, bool):
        raise BlockFormError("contribution: accepted: expected true or false")
    return read


def _member(value: object) -> MemberChange:
    read = MemberChange(**_shape(MemberChange, value, "member"))
    _texts(read, "member", SITE_NAME, "site")
    _texts(read, "member", re.compile(f"(?:{_HASH.pattern})?"), "key")
    _texts(read, "member", re.compile("|".join(STATES)), "state")
    return read


def _shape(kind: type[Any], value: object, where: str) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise BlockFormError(f"{where}: expected an object of {', '.join(sorted(names))}")
    return dict(value)


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(content[name], list):
        raise BlockFormError(f"block: {name}: expected a list")
    return list(content[name])


def _texts(value: object, where: str, pattern: re.Pattern[str], *names: str) -> None:
    for name in names:
        text = getattr(value, name)
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise BlockFormError(f"{where}: {name}: expected a text of the form {pattern.pattern}")


def _counts(value: object, where: str, *names: str) -> None:
    for name in names:
        count = getattr(value, name)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_COUNT:
            raise BlockFormError(f"{where}: {name}: expected a count")


def _block_message(block_hash: str) -> bytes:
    return f"{VERSION}:block:{block_hash}".encode()
