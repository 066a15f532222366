"""A consortium without processes: a coordinator's real database, keys of sites, and a chain of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.block import Contribution, Head, Signed, Statement
from appliance.consortium.chronicle import Chronicle, Entry
from appliance.consortium.offers import Countersignature, Offer
from appliance.consortium.replica import Replica
from appliance.db import migrate
from appliance.db.base import now
from appliance.db.coordinator import Member
from appliance.db.engine import make_engine, reading, writing

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ResearchZone

SITES = ("north", "south", "west")
PLAN = "c" * 64


def digest(text: str) -> str:
    """Return a hash that stands for something of this name."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(repr=False)
class Scene:
    """A coordinator and the keys of its sites."""

    chronicle: Chronicle
    keys: dict[str, Ed25519PrivateKey]

    @property
    def blocks(self) -> list[Signed]:
        """All blocks."""
        with reading(self.chronicle.engine) as session:
            return chronicle.stored(session)

    def offer(self, first: int = 1) -> Offer:
        """Offer the chain from a block on."""
        chain = self.chronicle.chain()
        signature = blocks.sign_head(chain.federation, chain.head, self.chronicle.key, "coordinator")
        return Offer(first, tuple(self.blocks[first - 1 :]), chain.head, signature)

    def countersign(self, site: str) -> str:
        """Let a site countersign the present head."""
        chain = self.chronicle.chain()
        key = self.keys[site]
        signature = blocks.sign_head(chain.federation, chain.head, key, "site")
        said = Countersignature(chain.head, signature, blocks.public_hex(key.public_key()))
        return self.chronicle.take_countersignature(site, said)

    def contribution(
        self,
        site: str,
        number: int,
        model: str,
        head: Head | None = None,
        *,
        plan: str = PLAN,
        norm: float | None = None,
    ) -> Contribution:
        """Let a site sign what it contributes to a round, with the norm that it states."""
        chain = self.chronicle.chain()
        seen = head or chain.head
        statement = Statement(
            chain.federation,
            site,
            "train",
            number,
            plan,
            model,
            digest(f"update {site} {number}"),
            digest(f"receipt {site} {number}"),
            digest(f"data {site}"),
            10,
            seen.size,
            seen.root,
            None if norm is None else blocks.stated_norm(norm),
        )
        return Contribution(
            site,
            accepted=True,
            samples=10,
            statement=statement,
            signature=blocks.sign_statement(statement, self.keys[site]),
        )

    def round(self, number: int, contributions: tuple[Contribution, ...] | None = None) -> None:
        """Finish a round to which every site contributes."""
        model = digest(f"model {number - 1}")
        given = contributions or tuple(self.contribution(site, number, model) for site in sorted(self.keys))
        entry = Entry(blocks.ROUND, PLAN, number, model, digest(f"model {number}"), given)
        with writing(self.chronicle.engine) as session:
            chronicle.append(session, self.chronicle.key, entry)

    def work(self, rounds: int, start: int = 1) -> None:
        """Finish rounds, each countersigned by every site before the next one."""
        for number in range(start, start + rounds):
            self.round(number)
            for site in self.keys:
                assert self.countersign(site) == ""


def begin(
    folder: Path,
    key: Ed25519PrivateKey | None = None,
    keys: dict[str, Ed25519PrivateKey] | None = None,
    run: tuple[str, str] = (PLAN, digest("model 0")),
) -> Scene:
    """Begin a federation of three sites with an open run of a plan and a model."""
    folder.mkdir(exist_ok=True, parents=True)
    url = f"sqlite:///{folder / 'coordinator.db'}"
    migrate.upgrade(url, "coordinator")
    engine = make_engine(url)
    keys = keys or {site: Ed25519PrivateKey.generate() for site in SITES}
    with writing(engine) as session:
        for site, one in keys.items():
            public = blocks.public_hex(one.public_key())
            session.add(
                Member(name=site, signing_key=public, certificate_serial="1", certificate_ends_at=now())
            )
    scene = Scene(Chronicle(engine, key or Ed25519PrivateKey.generate()), keys)
    scene.chronicle.open_run(run[0], 0, run[1])
    return scene


def show_run(zone: ResearchZone, folder: Path, plan: str, model: str) -> None:
    """Let a coordinator show a site the ledger's block that begins a run of this plan on this model."""
    site = zone.settings.federation.site
    scene = begin(folder, None, {site: zone.keys.signing}, (plan, model))
    assert isinstance(Replica(zone).receive(scene.offer()), Countersignature)
    scene.chronicle.engine.dispose()


def resealed(signed: Signed, key: Ed25519PrivateKey, **changes: Any) -> Signed:
    """Return a block with other content that the coordinator signed: what it alone can do."""
    return blocks.seal(replace(blocks.read_block(signed.body), **changes), key)


def edited(signed: Signed, **changes: Any) -> Signed:
    """Return a block whose text somebody edited who has no key."""
    return Signed(
        json.dumps({**json.loads(signed.body), **changes}, sort_keys=True, separators=(",", ":")),
        signed.signature,
    )
