"""Rounds between peers in the worker of one site; the other is played by the test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select

from appliance import datasets, peering, sitestate, training
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import ResearchLedgerEntry, Round
from appliance.federation import roundfiles
from appliance.federation.errors import ReleaseError
from appliance.federation.site import Asked, SiteService
from appliance.work import claimed
from tests.appliance.training_node import TrainingNode, make_training_node
from trainer.federation.aggregation import Update, fingerprint
from trainer.federation.peering.kept import Kept, read_kept
from trainer.federation.peering.letters import Letter, Mail, order_to_send, read_letter
from trainer.federation.peering.record import Record
from trainer.federation.peering.relay import Heard, Relay
from trainer.federation.plan import Strategy
from trainer.local_round import evaluate, use_threads
from trainer.networks import initial_weights
from trainer.peers import Peer, blend, dfedavgm
from trainer.ports import silent
from trainer.strategies import Contribution
from trainer.weights_io import load, save, to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

use_threads(1)
SITE, OTHER = "site-1", "site-2"


@dataclass(frozen=True)
class Scene:
    """A site that told of its first round, the record that counted it, and what its neighbour told."""

    node: TrainingNode
    record: Record
    message: Mapping[str, Any]
    other: Mapping[str, Any]

    def add(self, record: Record, kind: str = "train", number: int = 2, *, mail: Mail | None = None) -> str:
        """Insert a round on a record, with its mail beside it; return its row id."""
        root = self.node.zone.root
        path = root / "federation" / "models" / f"record-{kind}.safetensors"
        digest = save(path, record.arrays())
        if mail is not None:
            store(self.node, mail, kind, number)
        relative = str(path.relative_to(root))
        return self.node.add_round(kind, number, global_model_sha256=digest, input_path=relative)

    @property
    def mail(self) -> Mail:
        """What the neighbour told, for this site's second round."""
        return Mail((SITE, OTHER), {OTHER: self.message})


def store(node: TrainingNode, mail: Mail, kind: str, number: int) -> None:
    content = to_bytes(mail.arrays())
    digest = hashlib.sha256(content).hexdigest()
    path = roundfiles.mail_path(node.zone.root, node.protocol_id, kind, number, digest)
    roundfiles.store_mail(path, [content], 2**30)


def worked(node: TrainingNode, round_id: str) -> Round:
    """Do what the Celery task does; return the row."""
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def output(node: TrainingNode, row: Round) -> Letter:
    assert row.output_path is not None, row.reason
    return read_letter(load(node.zone.root / row.output_path))


def kept(node: TrainingNode, number: int) -> Kept:
    with reading(node.zone.engine) as session:
        row = session.scalars(select(Round).where(Round.kind == "train", Round.number == number)).one()
        return read_kept(sitestate.load(session, node.zone.root, after(row)))


def after(row: Round) -> Round:
    """Return a round that would come after this one."""
    return Round(protocol_id=row.protocol_id, kind="train", number=row.number + 1)


def first_round(folder: Path, name: str, moved: float = 0.01, **changes: Any) -> Scene:
    """Play the first round; the other site moved each number by so much."""
    node = make_training_node(folder, strategy=Strategy(name, {}), total_rounds=4, **changes)
    start = initial_weights(node.plan.task)
    store(node, Mail((SITE, OTHER)), "train", 1)
    row = worked(node, node.add_round())
    ours, samples = output(node, row), row.samples
    delta = {
        n: np.asarray(np.full_like(array, moved if array.dtype.kind == "f" else 1))
        for n, array in start.items()
    }
    relay, record = Relay(node.plan, start), Record(fingerprint(start))
    if name == "dfedavgm":
        spoken = dfedavgm.speak(Peer(start, 9, start), Contribution(OTHER, delta, 9), 1, 8)
        theirs = Letter(fingerprint(spoken.now.weights), 1, {}, (SITE,), spoken.message)
        other, message = spoken.now.weights, spoken.message
    else:
        other = {n: np.asarray(array + delta[n], array.dtype) for n, array in start.items()}
        theirs, message = Letter(fingerprint(other), 1), other
    heard = []
    for site, letter, count in ((SITE, ours, samples), (OTHER, theirs, 9)):
        update = Update(site, letter.arrays(), count)
        judgement, one = relay.judge(record, 1, update, "", start)
        assert isinstance(one, Heard), judgement.reason
        heard.append(one)
    return Scene(node, relay.next_record(record, 1, heard), message, other)


@pytest.fixture
def ring(tmp_path: Path) -> Scene:
    return first_round(tmp_path, "dfedavgm")


@pytest.fixture
def torrent(tmp_path: Path) -> Scene:
    return first_round(tmp_path, "braintorrent")


def test_the_worker_mixes_with_its_neighbour_and_trains_from_that(ring: Scene) -> None:
    mine = kept(ring.node, 1)
    row = worked(ring.node, ring.add(ring.record, mail=ring.mail))

    assert (row.state, row.reason) == (WorkState.DONE, None)
    letter, second = output(ring.node, row), kept(ring.node, 2)
    assert (letter.version, letter.to) == (2, (OTHER,))
    expected = blend(mine.before.weights, [mine.said.weights, ring.other], [0.5, 0.5])
    for name, array in second.before.weights.items():
        np.testing.assert_array_equal(array, expected[name])
    assert letter.said == fingerprint(second.said.weights)
    assert row.update_norm is not None
    assert 0 < row.update_norm <= ring.node.plan.max_update_norm


def test_the_drawn_site_merges_by_cases_and_keeps_what_it_trained(torrent: Scene) -> None:
    mine = kept(torrent.node, 1)
    row = worked(torrent.node, torrent.add(torrent.record, mail=torrent.mail))

    assert (row.state, row.reason) == (WorkState.DONE, None)
    letter, second = output(torrent.node, row), kept(torrent.node, 2)
    assert (letter.version, letter.known, dict(letter.message)) == (2, {OTHER: 1}, {})
    assert second.taken == {OTHER: 1}
    assert fingerprint(second.before.weights) == fingerprint(mine.said.weights)
    assert letter.said == fingerprint(second.said.weights) != fingerprint(mine.said.weights)


@pytest.mark.parametrize("name", ["dfedavgm", "braintorrent"])
def test_a_round_that_is_worked_on_again_after_a_death_says_the_same(tmp_path: Path, name: str) -> None:
    scene = first_round(tmp_path, name)
    round_id = scene.add(scene.record, mail=scene.mail)
    first = worked(scene.node, round_id)
    with writing(scene.node.zone.engine) as session:
        row = session.get_one(Round, round_id)
        row.state, row.attempts = WorkState.QUEUED, 0

    again = worked(scene.node, round_id)

    assert again.output_sha256 == first.output_sha256
    assert len(list((scene.node.zone.root / "federation" / "own").glob(f"{round_id}-*"))) == 1


@pytest.mark.parametrize("name", ["dfedavgm", "braintorrent"])
def test_what_did_not_count_is_forgotten(tmp_path: Path, name: str) -> None:
    """The second round came late: the third goes on from before it."""
    scene = first_round(tmp_path, name)
    worked(scene.node, scene.add(scene.record, mail=scene.mail))
    before = kept(scene.node, 2).before
    mail = Mail((SITE, OTHER)) if name == "dfedavgm" else scene.mail
    assert worked(scene.node, scene.add(scene.record, number=3, mail=mail)).state == WorkState.DONE

    third = kept(scene.node, 3).before
    assert fingerprint(third.weights) == fingerprint(before.weights)
    assert third.version == before.version == 1


@pytest.mark.parametrize("wrong", ["lied", "no-mail", "bent", "state", "not-a-record"])
def test_what_is_not_this_run_s_history_ends_the_round_with_its_reason(ring: Scene, wrong: str) -> None:
    record, mail, said = ring.record, ring.mail, ""
    if wrong == "lied":
        record = replace(record, said={**record.said, (SITE, 1): "ab" * 32})
        said = "another model of this site"
    elif wrong == "no-mail":
        mail, said = Mail((SITE, OTHER)), "each neighbour"
    elif wrong == "bent":
        message = {name: np.array(array) for name, array in ring.message.items()}
        next(iter(message.values())).reshape(-1)[:1] += 1
        mail, said = Mail((SITE, OTHER), {OTHER: message}), "differs from the hash"
    elif wrong == "state":
        for path in (ring.node.zone.root / "federation" / "own").iterdir():
            path.unlink()
        said = "lost or changed"
    round_id = ring.add(record, mail=mail)
    if wrong == "not-a-record":
        path = ring.node.zone.root / "federation" / "models" / "other.safetensors"
        digest = save(path, {"weight": np.zeros(3, np.float32)})
        with writing(ring.node.zone.engine) as session:
            row = session.get_one(Round, round_id)
            row.global_model_sha256, row.input_path = digest, str(path.relative_to(ring.node.zone.root))
        said = "record of a round"

    row = worked(ring.node, round_id)

    assert row.state == WorkState.DEAD
    assert said in (row.reason or "")
    assert row.output_path is None


def test_a_site_that_never_counted_makes_no_package(ring: Scene) -> None:
    start = fingerprint(initial_weights(ring.node.plan.task))
    row = worked(ring.node, ring.add(Record(start), "finalize", 4, mail=Mail()))
    assert (row.state, "no model of its own" in (row.reason or "")) == (WorkState.DEAD, True)


def test_the_package_is_of_this_site_s_own_model(ring: Scene) -> None:
    mine = kept(ring.node, 1)
    row = worked(ring.node, ring.add(ring.record, "finalize", 4, mail=Mail((), ring.mail.messages)))

    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert list((ring.node.zone.settings.crossing_in / "packages").glob("*.zip"))
    assert not list((ring.node.zone.root / "federation" / "mail").iterdir())
    expected = blend(mine.before.weights, [mine.said.weights, ring.other], [0.5, 0.5])
    built = datasets.build(ring.node.zone, ring.node.plan.task, silent)
    assert row.metrics == evaluate(ring.node.plan.task, expected, built.dataset).to_json()


@pytest.mark.parametrize("ours", [True, False])
def test_a_model_leaves_for_a_record_of_the_ledger_alone(torrent: Scene, ours: bool) -> None:
    record = (
        torrent.record if ours else replace(torrent.record, versions={**torrent.record.versions, SITE: 9})
    )
    path = torrent.node.zone.root / "federation" / "models" / "order.safetensors"
    digest = save(path, order_to_send(record.arrays(), OTHER))
    relative = str(path.relative_to(torrent.node.zone.root))

    row = worked(
        torrent.node, torrent.node.add_round("send", 2, global_model_sha256=digest, input_path=relative)
    )

    assert row.state == WorkState.DEAD
    assert "ledger names" in (row.reason or "")
    with reading(torrent.node.zone.engine) as session:
        assert peering.MODEL_SENT not in set(session.scalars(select(ResearchLedgerEntry.kind)))


class TestGate:
    """What the site's service takes for such a run."""

    def asked(self, scene: Scene, kind: str, mail: str = "") -> Asked:
        return Asked(scene.node.plan.sha256, kind, 2, "ab" * 32, mail)

    def test_models_are_sent_where_the_plan_says_so_alone(self, ring: Scene) -> None:
        decision, _ = SiteService(ring.node.zone).begin(self.asked(ring, "send"))
        assert (decision.standing, decision.code) == ("refused", "unknown_kind")

    def test_to_a_few_sites_in_one_round_at_most(self, torrent: Scene) -> None:
        service = SiteService(torrent.node.zone)
        assert service.begin(self.asked(torrent, "send"))[0].standing == "wanted"
        for i in range(8):
            torrent.node.add_round("send", 2, global_model_sha256=f"{i}" * 64)
        assert service.begin(self.asked(torrent, "send"))[0].code == "other_model"

    def test_mail_is_wanted_where_the_gate_admits_its_round(self, ring: Scene) -> None:
        service, content = SiteService(ring.node.zone), to_bytes(ring.mail.arrays())
        digest = hashlib.sha256(content).hexdigest()
        asked = self.asked(ring, "train", digest)
        assert service.begin(asked)[0].standing == "wanted"
        service.store_mail(asked, [content])
        with pytest.raises(ReleaseError, match="cannot be stored"):
            service.store_mail(self.asked(ring, "train", "cd" * 32), [content])
        with pytest.raises(ReleaseError, match="no mail is wanted"):
            service.store_mail(self.asked(ring, "train"), [content])
        other = replace(asked, plan_sha256="ef" * 32)
        with pytest.raises(ReleaseError, match="no mail is wanted"):
            service.store_mail(other, [content])

    def test_no_mail_comes_with_a_plan_of_one_model(self, tmp_path: Path) -> None:
        node = make_training_node(tmp_path)
        asked = Asked(node.plan.sha256, "train", 1, "ab" * 32, "cd" * 32)
        decision, _ = SiteService(node.zone).begin(asked)
        assert (decision.standing, decision.code) == ("refused", "unknown_kind")
