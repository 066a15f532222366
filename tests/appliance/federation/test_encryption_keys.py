from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from appliance import node
from appliance.consortium.block import public_hex
from appliance.consortium.offers import Countersignature
from appliance.consortium.replica import Replica
from appliance.db.engine import reading, writing
from appliance.db.research import ResearchLedgerEntry, Round
from appliance.federation import envelope, sitekeys
from appliance.federation.answers import Answer
from appliance.federation.envelope import Envelope, EnvelopeError
from appliance.federation.errors import CoordinatorError, ReleaseError
from appliance.federation.keykeeper import KeyKeeper
from appliance.federation.messages import SiteAnswer
from appliance.federation.site import SiteService
from tests.appliance.consortium.scene import Scene, begin
from tests.appliance.federation.research import add_subjects, finish_round
from tests.appliance.federation.test_site import asked, begun
from tests.trainer.federation.plans import make_plan
from trainer.encryption import Encryption, ckks, model
from trainer.errors import UnfitModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.node import ResearchZone
    from appliance.settings import Settings
    from trainer.federation.plan import Plan

SECRET = ckks.new_secret()
SAID = SiteAnswer("", "", 0, {}, 0.0, "", "")


@dataclass
class Stage:
    """A site, the keys of three sites of whose one it is, and an encrypted plan that it knows."""

    zone: ResearchZone
    scene: Scene
    plan: Plan

    def envelope(self, maker: str = "south", plan: Plan | None = None, secret: bytes = SECRET) -> Envelope:
        return envelope.seal(secret, plan or self.plan, maker, self.scene.keys[maker])


@pytest.fixture
def stage(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[Stage]:
    zone = node.open_research(make_node(federation={"site": "north", "minimum_cohort": 3}))
    add_subjects(zone, 6)
    keys = {"north": zone.keys.signing, **{name: Ed25519PrivateKey.generate() for name in ("south", "west")}}
    recipients = {site: public_hex(key.public_key()) for site, key in keys.items()}
    plan = make_plan(encryption=Encryption(recipients))
    scene = begin(tmp_path / "coordinator", None, keys, (plan.sha256, "0" * 64))
    assert isinstance(Replica(zone).receive(scene.offer()), Countersignature)
    SiteService(zone).propose(plan.to_json(), plan.sha256)
    yield Stage(zone, scene, plan)
    zone.engine.dispose()


def entries(zone: ResearchZone, kind: str) -> list[dict[str, Any]]:
    with reading(zone.engine) as session:
        found = session.scalars(select(ResearchLedgerEntry).where(ResearchLedgerEntry.kind == kind))
        return [json.loads(row.body) for row in found]


def test_every_recipient_opens_the_key_and_nobody_else(stage: Stage) -> None:
    made = stage.envelope()

    for key in stage.scene.keys.values():
        assert made.open(key) == SECRET
    with pytest.raises(EnvelopeError):
        made.open(stage.scene.chronicle.key)
    assert SECRET not in made.text.encode()


def test_the_first_key_stands_whatever_the_coordinator_hands_on_later(stage: Stage) -> None:
    first, second = stage.envelope(), stage.envelope("west", secret=ckks.new_secret())

    for _ in range(2):
        sitekeys.take(stage.zone, stage.plan.sha256, first.text)
    with pytest.raises(EnvelopeError, match="another"):
        sitekeys.take(stage.zone, stage.plan.sha256, second.text)

    key = sitekeys.key_of(stage.zone, stage.plan)
    cipher = key.encrypt(np.ones(3))
    total = ckks.Key.of_coordinator().weighted_sum([cipher], [0.5], None)
    np.testing.assert_allclose(ckks.Key.of_sites(SECRET).decrypt(total)[:3], 0.5, atol=1e-6)
    assert sitekeys.offer(stage.zone, stage.plan.sha256) == first.text
    assert [body["envelope_sha256"] for body in entries(stage.zone, "encryption.key_taken")] == [first.sha256]
    assert [body["code"] for body in entries(stage.zone, "order.refused")] == ["other_key"]
    [kept] = (stage.zone.root / "federation" / "keys").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    assert SECRET not in kept.read_bytes()


def test_a_site_offers_a_key_that_all_can_take(stage: Stage) -> None:
    offered = envelope.read(sitekeys.offer(stage.zone, stage.plan.sha256), stage.plan)

    assert offered.maker == "north"
    secrets = {offered.open(key) for key in stage.scene.keys.values()}
    assert len(secrets) == 1
    ckks.Key.of_sites(secrets.pop())


def wrong(stage: Stage) -> dict[str, str]:
    """Return envelopes that no site may take, by what is wrong."""
    good = json.loads(stage.envelope().text)
    other = replace(stage.plan, run_id="another")
    stranger = Ed25519PrivateKey.generate()
    forged = envelope.seal(SECRET, stage.plan, "south", stage.scene.keys["south"])
    return {
        "no json": "{",
        "a list": "[]",
        "too long": " " * (envelope.MAX_TEXT + 1),
        "one field more": json.dumps({**good, "more": ""}),
        "no text": json.dumps({**good, "sealed": 7}),
        "no base64": json.dumps({**good, "sealed": "?"}),
        "another maker": json.dumps({**good, "maker": "west"}),
        "a maker that is no recipient": json.dumps({**good, "maker": "east"}),
        "of another plan": stage.envelope(plan=other).text,
        "signed by another": json.dumps({**good, "signature": stranger.sign(b"x").hex()}),
        "changed": json.dumps({**json.loads(forged.text), "sealed": good["sealed"][:-8] + "AAAAAAA="}),
    }


def test_what_no_recipient_made_is_refused_by_coordinator_and_site(stage: Stage, tmp_path: Path) -> None:
    for what, text in wrong(stage).items():
        with pytest.raises(EnvelopeError):
            envelope.read(text, stage.plan)
        with pytest.raises(EnvelopeError):
            sitekeys.take(stage.zone, stage.plan.sha256, text)
        keeper = KeyKeeper(stage.plan, tmp_path / "key.json")
        with pytest.raises(CoordinatorError, match="offered"):
            keeper.choose([Answer("south", SAID, key=text)])
        assert not (tmp_path / "key.json").exists(), what
    assert entries(stage.zone, "encryption.key_taken") == []


def test_a_key_of_other_parameters_is_not_taken(stage: Stage) -> None:
    for secret in (b"", b"no key of the scheme", SECRET[:500]):
        with pytest.raises(EnvelopeError):
            sitekeys.take(stage.zone, stage.plan.sha256, stage.envelope(secret=secret).text)


def test_the_coordinator_keeps_one_key_over_its_restarts(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    one, two = stage.envelope().text, stage.envelope("west").text
    keeper = KeyKeeper(stage.plan, path)

    keeper.choose([Answer("south", SAID, key=two), Answer("west", SAID, key=one), Answer("x", SAID, key=one)])

    assert keeper.text == one
    again = KeyKeeper(stage.plan, path)
    again.choose([Answer("south", SAID, key=two)])
    assert again.text == one
    plain = KeyKeeper(replace(stage.plan, encryption=None), tmp_path / "none.json")
    plain.choose([])
    assert plain.text == ""


def recipients(plan: Plan, **changes: str) -> Plan:
    assert plan.encryption is not None
    return replace(plan, run_id="asks-more", encryption=Encryption({**plan.encryption.recipients, **changes}))


def test_a_plan_that_gives_the_key_to_others_is_refused_and_recorded(stage: Stage) -> None:
    service = SiteService(stage.zone)
    for changed in (
        recipients(stage.plan, east="e" * 64),  # whom the ledger does not know
        recipients(stage.plan, west="e" * 64),  # whom it knows with another key
        recipients(stage.plan, north="e" * 64),  # not this site's key
    ):
        decision = service.propose(changed.to_json(), changed.sha256)

        assert (decision.standing, decision.code) == ("refused", "other_recipients")
        with pytest.raises(EnvelopeError):
            sitekeys.offer(stage.zone, changed.sha256)
    assert {body["code"] for body in entries(stage.zone, "order.refused")} == {"other_recipients"}
    assert service.propose(stage.plan.to_json(), stage.plan.sha256).standing == "pending"


def test_without_a_key_or_with_a_foreign_model_nothing_is_trained(stage: Stage) -> None:
    with pytest.raises(EnvelopeError, match="taken"):
        sitekeys.key_of(stage.zone, stage.plan)
    sitekeys.take(stage.zone, stage.plan.sha256, stage.envelope().text)
    key, first = sitekeys.key_of(stage.zone, stage.plan), {"a": np.zeros(4, np.float32)}

    assert set(sitekeys.readable(key, stage.plan, first, 0)) == {"a"}
    far = model.encrypted(key, {"a": np.full(4, 1e3, np.float32)}, 1, 1)
    moved = model.combined(ckks.Key.of_coordinator(), first, [far], [1.0], 1.0)
    with pytest.raises(UnfitModelError, match="farther"):
        sitekeys.readable(key, stage.plan, moved, 1)


def test_a_receipt_says_the_norm_of_what_was_encrypted(stage: Stage) -> None:
    service = SiteService(stage.zone)
    view = begun(service, stage.plan)
    finish_round(stage.zone, view.round_id)

    with pytest.raises(ReleaseError, match="larger"):
        service.release(view.round_id)  # nobody measured it
    with writing(stage.zone.engine) as session:
        session.get_one(Round, view.round_id).update_norm = 101.0
    with pytest.raises(ReleaseError, match="larger"):
        service.release(view.round_id)
    with writing(stage.zone.engine) as session:
        session.get_one(Round, view.round_id).update_norm = 2.5
    _, signed = service.release(view.round_id)

    assert signed.body["update_norm"] == 2.5
    assert service.begin(asked(stage.plan))[0].standing == "admitted"
