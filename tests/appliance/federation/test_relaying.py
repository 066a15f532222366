from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.db.coordinator import RunState
from appliance.federation import policy, progress
from tests.appliance.federation.scripted import Script, ScriptedWorkflow, everyone_admits, said
from tests.appliance.federation.test_controller import SITES
from tests.trainer.federation.plans import make_plan
from tests.trainer.peers.groups import group, model, played, step
from trainer.federation import aggregation
from trainer.federation.peering import MAIL
from trainer.federation.peering import record as records
from trainer.federation.peering.letters import Mail, read_letter, read_mail, read_order_to_send
from trainer.federation.peering.site import Post, gathered, sent, settled, told
from trainer.federation.plan import Plan, Strategy
from trainer.peers import PEERS, Call
from trainer.strategies import Contribution

if TYPE_CHECKING:
    from appliance.federation import messages
    from appliance.federation.answers import Answer
    from appliance.federation.book import Book
    from trainer.federation.peering.kept import Kept

CASES = dict(zip(SITES, (10, 30, 7), strict=True))
both = pytest.mark.parametrize("name", ["dfedavgm", "braintorrent"])


@pytest.fixture(autouse=True)
def nothing_is_averaged_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the coordinator aggregates")

    monkeypatch.setattr(aggregation, "aggregate", refuse)


def trains_by(site: str, number: int) -> dict[str, Any]:
    """Return what a site's training changes in a round."""
    return step((SITES.index(site) + 1) * number * 0.25)


@dataclass
class Peers:
    """Sites that do what real ones do, but for the training; who is ``dead`` says nothing."""

    plan: Plan
    kept: dict[str, Kept] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    sent: list[tuple[int, str, str]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)

    def script(self) -> Script:
        return {
            **everyone_admits(),
            policy.TASK_TRAIN: self.train,
            policy.TASK_SEND: self.send,
            policy.TASK_FINALIZE: self.finalize,
        }

    def read(self, site: str, order: messages.Order, data: Any, rounds: int) -> tuple[Post, Mail]:
        params = FLModelUtils.from_shareable(data[site]).params
        rest = {name: array for name, array in params.items() if not name.startswith(MAIL)}
        assert aggregation.fingerprint(rest) == order.model_sha256
        mail = read_mail({name: array for name, array in params.items() if name not in rest})
        record = records.standing(rounds, rest, order.model_sha256)
        return Post(self.plan, site, record), mail if rounds else Mail(mail.there, {}, rest)

    def train(self, site: str, order: messages.Order, data: Any) -> Answer | None:
        if site in self.dead:
            return None
        post, mail = self.read(site, order, data, order.number - 1)
        before = settled(post, self.kept.get(site), mail)
        now, taken = gathered(post, before, mail, CASES[site]) if post.pulls else (before, {})
        contribution = Contribution(site, trains_by(site, order.number), CASES[site])
        letter, self.kept[site] = told(post, before, now, contribution, order.number, mail.there, taken)
        return said(site, samples=CASES[site], arrays=letter.arrays())

    def send(self, site: str, order: messages.Order, data: Any) -> Answer | None:
        if site in self.dead:
            return None
        arrays, to = read_order_to_send(FLModelUtils.from_shareable(data).params)
        self.sent.append((order.number, site, to))
        post = Post(self.plan, site, records.read(arrays))
        return said(site, samples=0, arrays=sent(post, self.kept.get(site), to).arrays())

    def finalize(self, site: str, order: messages.Order, data: Any) -> Answer | None:
        post, mail = self.read(site, order, data, order.number)
        if not post.record.version(site):
            return said(site, "round_failed")
        self.models[site] = settled(post, self.kept.get(site), mail).weights
        return said(site)


def begun(book: Book, name: str, **changes: Any) -> tuple[str, Peers]:
    plan = make_plan(**{"strategy": Strategy(name, {}), "total_rounds": 5, "seed": 2, **changes})
    return book.add_run(plan, model()), Peers(plan)


def simulated(plan: Plan, there: list[set[str]]) -> dict[str, Any]:
    held = group(SITES, **CASES)
    for number, names in enumerate(there, start=1):
        steps = {site: trains_by(site, number) for site in SITES}
        held, _ = played(plan.strategy.name, held, number, steps, there=names, seed=plan.seed)
    return {site: peer.weights for site, peer in held.items()}


def counted(book: Book, run_id: str) -> list[set[str]]:
    view = progress.run(book.engine, run_id)
    assert view is not None
    return [{one.site for one in number.sites if one.accepted} for number in view.rounds]


def check_models(peers: Peers, expected: dict[str, Any]) -> None:
    for site, found in peers.models.items():
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[site][name], err_msg=f"{site}: {name}")


@both
def test_each_site_comes_to_what_the_simulation_says_and_the_ledger_s_model_is_the_record(
    book: Book, name: str
) -> None:
    run_id, peers = begun(book, name, total_rounds=12)
    ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES).work()
    assert book.last_round(run_id) == 10

    ScriptedWorkflow(book, run_id, "job-b", peers.script(), SITES).work()

    assert book.state(run_id) == RunState.DONE
    check_models(peers, simulated(peers.plan, [set(SITES)] * 12))
    assert set(peers.models) == set(SITES)
    record = records.read(book.checkpoint(run_id).weights)
    assert all(record.model(site) == aggregation.fingerprint(peers.kept[site].said.weights) for site in SITES)


@both
def test_a_dead_site_is_passed_over_and_takes_part_again_when_it_is_back(book: Book, name: str) -> None:
    run_id, peers = begun(book, name, total_rounds=14)
    peers.dead = {"south"}
    ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES).work()
    assert "south" not in set().union(*counted(book, run_id))
    peers.dead = set()

    ScriptedWorkflow(book, run_id, "job-b", peers.script(), SITES).work()

    others = {"north", "west"}
    check_models(peers, simulated(peers.plan, [others] * 10 + [set(SITES)] * 4))
    assert set(peers.models) == set(SITES) if name == "dfedavgm" else set(peers.models) >= others


def test_a_round_that_was_killed_before_it_was_written_down_counts_once(book: Book) -> None:
    run_id, peers = begun(book, "dfedavgm")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    first = ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES)
    finish = type(book).finish_round
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(book),
            "finish_round",
            lambda self, run, job, reached, *rest: (
                dies() if reached.number == 3 else finish(self, run, job, reached, *rest)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            first.work()
    assert book.last_round(run_id) == 2

    ScriptedWorkflow(book, run_id, "job-b", peers.script(), SITES).work()

    check_models(peers, simulated(peers.plan, [set(SITES)] * 5))


@pytest.mark.parametrize("fault", ["nan", "hash", "version", "empty", "model"])
@both
def test_a_site_whose_word_is_none_is_refused_and_named_and_the_others_go_on(
    book: Book, name: str, fault: str
) -> None:
    run_id, peers = begun(book, name)

    def bent(site: str, order: messages.Order, data: Any) -> Answer | None:
        answer = peers.train(site, order, data)
        assert answer is not None
        if site != "west":
            return answer
        del peers.kept["west"]
        arrays = dict(answer.arrays)
        if fault == "nan":
            arrays["bn.running_var"] = np.full(2, np.nan, np.float32)
        elif fault == "hash":
            arrays["peer:said"] = np.zeros(31, np.uint8)
        elif fault == "version":
            arrays["peer:version"] = np.array([99])
        elif fault == "empty":
            arrays = {"weight": np.zeros(3)}
        else:
            arrays |= model(3.0)
        return said(site, samples=7, arrays=arrays)

    workflow = ScriptedWorkflow(book, run_id, "job-a", {**peers.script(), policy.TASK_TRAIN: bent}, SITES)

    workflow.work()

    assert "west" not in set().union(*counted(book, run_id))
    check_models(peers, simulated(peers.plan, [{"north", "south"}] * 5))
    assert set(peers.models) == {"north", "south"}
    view = progress.run(book.engine, run_id)
    assert view is not None
    reasons = [one.reason for number in view.rounds for one in number.sites if one.site == "west"]
    assert reasons
    assert all(reasons)


def test_with_too_few_words_the_round_does_not_count(book: Book) -> None:
    run_id, peers = begun(book, "dfedavgm", min_sites=3)
    peers.dead = {"west"}
    workflow = ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES)

    workflow.work()

    assert book.last_round(run_id) == 0
    assert "expected at least 3" in workflow.panics[0]
    assert book.state(run_id) == RunState.RUNNING


class TestFetching:
    """BrainTorrent: models go to the drawn site alone."""

    def test_models_go_to_the_drawn_site_and_none_twice(self, book: Book) -> None:
        run_id, peers = begun(book, "braintorrent", total_rounds=9)

        ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES).work()

        rule = PEERS["braintorrent"]
        for number, site, to in peers.sent:
            assert rule.participants(Call(number, SITES, peers.plan.seed, {})) == (to,)
            assert site != to
        assert len(peers.sent) == len(set(peers.sent))
        newest: dict[tuple[str, str], int] = {}
        for number, site, to in peers.sent:  # what was fetched is newer than what was fetched before
            trained = [
                n for n, names in enumerate(counted(book, run_id), start=1) if site in names and n < number
            ]
            assert len(trained) > newest.get((site, to), 0)
            newest[site, to] = len(trained)

    @pytest.mark.parametrize("fault", ["silent", "other-model", "of-another", "refuses"])
    def test_a_model_that_is_not_what_its_site_told_goes_to_nobody(self, book: Book, fault: str) -> None:
        run_id, peers = begun(book, "braintorrent")

        def bent(site: str, order: messages.Order, data: Any) -> Answer | None:
            answer = peers.send(site, order, data)
            if site != "north" or answer is None:
                return answer
            if fault == "silent":
                return None
            if fault == "refuses":
                return said(site, "paused")
            letter = read_letter(answer.arrays)
            arrays = dict(answer.arrays)
            if fault == "other-model":
                arrays["half"] = np.asarray(letter.message["half"] + np.float16(1))
            else:
                other = next(one for one in peers.kept if one != "north")
                arrays |= peers.kept[other].said.weights
            return said(site, samples=0, arrays=arrays)

        ScriptedWorkflow(book, run_id, "job-a", {**peers.script(), policy.TASK_SEND: bent}, SITES).work()

        assert book.state(run_id) == RunState.DONE
        record = records.read(book.checkpoint(run_id).weights)
        assert all(other != "north" for _, other in record.known)

    def test_a_drawn_site_that_does_not_answer_is_passed_over_and_named(self, book: Book) -> None:
        run_id, peers = begun(book, "braintorrent")
        ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES)
        [drawn] = PEERS["braintorrent"].participants(Call(2, SITES, peers.plan.seed, {}))

        def train(site: str, order: messages.Order, data: Any) -> Answer | None:
            return None if (order.number, site) == (2, drawn) else peers.train(site, order, data)

        ScriptedWorkflow(book, run_id, "job-a", {**peers.script(), policy.TASK_TRAIN: train}, SITES).work()

        view = progress.run(book.engine, run_id)
        assert view is not None
        [second] = PEERS["braintorrent"].participants(
            Call(2, tuple(set(SITES) - {drawn}), peers.plan.seed, {})
        )
        assert {(one.site, one.accepted) for one in view.rounds[1].sites} == {(drawn, False), (second, True)}
        assert book.state(run_id) == RunState.DONE


def test_the_coordinator_keeps_messages_until_whoever_is_to_have_them_has_them(book: Book) -> None:
    run_id, peers = begun(book, "dfedavgm", total_rounds=4)
    folder = book.root / "runs" / run_id / "mail"
    away = {3: "west", 4: "west"}

    def train(site: str, order: messages.Order, data: Any) -> Answer | None:
        return None if away.get(order.number) == site else peers.train(site, order, data)

    ScriptedWorkflow(book, run_id, "job-a", {**peers.script(), policy.TASK_TRAIN: train}, SITES).work()

    versions = {tuple(path.name.split("-")[:2]) for path in folder.iterdir()}
    assert versions == {
        *((site, "00002") for site in SITES),  # west has to mix these
        *((site, "00004") for site in ("north", "south")),
    }
    check_models(peers, simulated(peers.plan, [set(SITES)] * 2 + [{"north", "south"}] * 2))


def test_a_disk_that_takes_no_message_ends_the_job_and_blames_no_site(book: Book) -> None:
    run_id, peers = begun(book, "dfedavgm")
    (book.root / "runs" / run_id / "mail").write_text("in the way")
    workflow = ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES)

    workflow.work()

    assert "could not be kept" in workflow.panics[0]
    assert book.last_round(run_id) == 0


def test_a_kept_message_that_was_changed_on_disk_ends_the_job_and_blames_no_site(book: Book) -> None:
    run_id, peers = begun(book, "dfedavgm", total_rounds=12)
    ScriptedWorkflow(book, run_id, "job-a", peers.script(), SITES).work()
    for path in (book.root / "runs" / run_id / "mail").glob("north-*-whole.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    workflow = ScriptedWorkflow(book, run_id, "job-b", peers.script(), SITES)

    workflow.work()

    assert "differs from the hash" in workflow.panics[0]
    assert book.last_round(run_id) == 10
