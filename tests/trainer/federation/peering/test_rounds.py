from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.federation.peering.village import Village, plan_of
from tests.trainer.peers.groups import group, model, pairs, played
from trainer.errors import TrainerError, UpdateError
from trainer.federation.aggregation import Update, fingerprint
from trainer.federation.peering import record as records
from trainer.federation.peering.letters import Letter, Mail, read_letter
from trainer.federation.peering.site import OtherHistoryError, settled
from trainer.first_model import check_reachable, reach_of_peers
from trainer.peers import PEERS, Past
from trainer.peers.dfedavgm import contraction_of
from trainer.peers.quantised import SCALES
from trainer.strategies.base import update_norm

if TYPE_CHECKING:
    from trainer.federation.plan import Plan

FOUR = {"a": 10, "b": 30, "c": 7, "d": 12}
PLANS = {
    "ring": plan_of("dfedavgm"),
    "four-bits": plan_of("dfedavgm", bits=4, density=0.4),
    "whole": plan_of("dfedavgm", bits=32),
    "braintorrent": plan_of("braintorrent"),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def steps(number: int) -> dict[str, Any]:
    """Return a step of each site, other ones in each round."""
    found = {}
    for site in FOUR:
        generator = np.random.default_rng([number, ord(site)])
        found[site] = {
            name: np.asarray(
                generator.normal(0, 0.1, array.shape) if array.dtype.kind == "f" else 2, dtype=array.dtype
            )
            for name, array in model().items()
        }
    return found


def simulated(plan: Plan, there: list[str]) -> dict[str, Any]:
    """Return what each site holds after rounds of a simulation, in which these answer."""
    held = group(FOUR, **FOUR)
    for number, names in enumerate(there, start=1):
        held, _ = played(
            plan.strategy.name,
            held,
            number,
            steps(number),
            there=names,
            seed=plan.seed,
            parameters=dict(plan.strategy.parameters),
        )
    return {site: peer.weights for site, peer in held.items()}


def same(first: Any, second: Any) -> bool:
    return set(first) == set(second) and all(
        np.array_equal(array, second[name]) for name, array in first.items()
    )


@every_plan
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whoever_is_away_or_late_each_site_holds_what_the_simulation_says(
    plan: Plan, data: st.DataObject
) -> None:
    village, there = Village.new(plan, **FOUR), []
    for number in range(1, data.draw(st.integers(1, 6)) + 1):
        names = data.draw(st.sets(st.sampled_from("abcd"), min_size=1))
        late = data.draw(st.sets(st.sampled_from("abcd"), max_size=2)) - names
        village.round(number, steps(number), names, late)
        there.append("".join(sorted(names)))
    expected = simulated(plan, there)
    assert all(same(village.holds(site), expected[site]) for site in FOUR)


@every_plan
def test_messages_go_where_they_go_in_a_simulation(plan: Plan) -> None:
    village, held, sent = Village.new(plan, **FOUR), group(FOUR, **FOUR), set()
    for number, names in enumerate(("abcd", "abd", "abcd", "cd"), start=1):
        village.round(number, steps(number), names)
        held, exchanges = played(
            plan.strategy.name,
            held,
            number,
            steps(number),
            there=names,
            seed=plan.seed,
            parameters=dict(plan.strategy.parameters),
        )
        sent |= {(number, *pair) for pair in pairs(exchanges)}
        assert {(one, other) for one, other, _ in village.sent} == {pair[1:] for pair in sent}


def test_a_site_that_missed_nothing_gets_few_bits_and_one_that_did_the_whole() -> None:
    village = Village.new(PLANS["ring"], **FOUR)
    village.round(1, steps(1), "abcd")
    village.round(2, steps(2), "abd")
    before = len(village.sent)
    village.round(3, steps(3), "abcd")
    whole = {(one, other) for one, other, is_whole in village.sent[before:] if is_whole}
    assert whole == {("b", "c"), ("d", "c")}


def test_asked_twice_a_site_takes_nothing_over_twice() -> None:
    for plan in PLANS.values():
        village = Village.new(plan, **FOUR)
        for number in (1, 2, 3):
            village.round(number, steps(number), "abcd")
        for site in FOUR:
            assert same(village.holds(site), village.holds(site))
        village.round(4, steps(4), "abcd", late="abc")
        before = {site: village.holds(site) for site in "abc"}
        village.round(5, steps(5), "d")
        assert all(same(village.holds(site), before[site]) for site in "abc")


class TestHistory:
    """What a site refuses to go on from."""

    @staticmethod
    def village(name: str = "ring") -> Village:
        village = Village.new(PLANS[name], **FOUR)
        village.round(1, steps(1), "abcd")
        return village

    @pytest.mark.parametrize("name", ["ring", "braintorrent"])
    def test_a_record_that_names_another_model_of_this_site(self, name: str) -> None:
        village = self.village(name)
        said = {**village.record.said, ("a", 1): "ab" * 32}
        village.record = records.Record(
            **{**vars(village.record), "said": said},
        )
        with pytest.raises(OtherHistoryError, match="another model"):
            village.holds("a")

    @pytest.mark.parametrize("name", ["ring", "braintorrent"])
    def test_its_own_state_is_gone_or_another_version_is_recorded(self, name: str) -> None:
        village = self.village(name)
        with pytest.raises(OtherHistoryError, match="gone"):
            settled(village.post("a"), None, village.mail("a"))
        versions, said = {**village.record.versions, "a": 9}, {**village.record.said, ("a", 9): "ab" * 32}
        village.record = records.Record(**{**vars(village.record), "versions": versions, "said": said})
        with pytest.raises(OtherHistoryError, match="another version"):
            settled(village.post("a"), village.kept["a"], Mail())

    @pytest.mark.parametrize("name", ["ring", "whole"])
    def test_a_neighbour_s_message_that_is_not_what_it_told(self, name: str) -> None:
        village = self.village(name)
        for store in (village.messages, village.wholes):
            changed = {n: np.array(array) for n, array in store["b", 1].items()}
            first = next(iter(changed.values()))
            first.reshape(-1)[0] += 1
            store["b", 1] = changed
        with pytest.raises(UpdateError):
            village.holds("a")

    @pytest.mark.parametrize("wrong", ["missing", "more", "stranger"])
    def test_messages_of_others_than_its_neighbours(self, wrong: str) -> None:
        village = self.village()
        mail = village.mail("a")
        messages = dict(mail.messages)
        if wrong == "missing":
            del messages["b"]
        else:
            messages["c" if wrong == "more" else "zoe"] = messages["b"]
        with pytest.raises(UpdateError, match="each neighbour"):
            settled(village.post("a"), village.kept["a"], Mail(messages=messages))

    def test_a_start_model_that_is_another_than_the_record_s(self) -> None:
        village = Village.new(PLANS["ring"], **FOUR)
        with pytest.raises(UpdateError, match="started from"):
            settled(village.post("a"), None, Mail(start=model(2.0)))

    def test_a_peer_s_model_that_was_merged_before_or_is_another(self) -> None:
        village = self.village("braintorrent")
        pulled = village.pulled("a", tuple("abcd"))
        bent = {name: np.asarray(array + np.ones_like(array)) for name, array in pulled["b"].items()}
        with pytest.raises(UpdateError, match="differs from the hash"):
            village.trained("a", 2, steps(2)["a"], tuple("abcd"), {**pulled, "b": bent})
        with pytest.raises(UpdateError, match="newer"):
            village.trained("a", 2, steps(2)["a"], tuple("abcd"), {**pulled, "a": pulled["b"]})
        drawn = village.relay.drawn(2, "abcd")[0]
        village.round(2, steps(2), "abcd")
        assert village.relay.wanted(village.record, drawn, "abcd") == ()
        other = next(site for site in "abcd" if site != drawn)
        model_of_other = village.kept[other].said.weights
        with pytest.raises(UpdateError, match="newer"):
            village.trained(drawn, 3, steps(3)[drawn], tuple("abcd"), {other: model_of_other})


WORDS = ("version", "known", "samples")
MESSAGES = ("hash", "nan", "shape", "exact", "names", "other-message")


def bent(right: Letter, wrong: str) -> Letter:
    """Return a letter that is not right any more."""
    message = {name: np.array(right.message[name]) for name in right.message}
    wide = next(
        (name for name in sorted(message) if message[name].dtype.kind == "f" and message[name].size > 1), ""
    )
    changed: dict[str, Any] = {
        "hash": {"said": "ab" * 32},
        "version": {"version": 3},
        "known": {"known": {"b": 2, "zoe": 1}},
        "other-message": {"message": {} if message else model()},
        "names": {"message": {**message, "more": np.zeros(1, np.float32)}},
        "exact": {"message": {**message, "bn.running_var": np.ones(3, np.float32)}},
        "nan": {"message": {**message, wide: np.full_like(message.get(wide, np.zeros(1)), np.nan)}},
        "shape": {"message": {**message, wide: np.zeros(1, np.float32)}},
        "scale": {"message": {**message, SCALES: np.full_like(message.get(SCALES, np.zeros(1)), 3e38)}},
    }
    return replace(right, **changed.get(wrong, {}))


class TestRelay:
    """What the coordinator refuses of a site."""

    @staticmethod
    def word(village: Village, letter: Letter, samples: int = 5, site: str = "a") -> str | None:
        held = village.wholes.get((site, village.record.version(site)), model())
        update = Update(site, letter.arrays(), samples)
        return village.relay.judge(village.record, 2, update, "", held)[0].reason

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            *(("ring", wrong) for wrong in (*WORDS, *MESSAGES, "scale")),
            *(("whole", wrong) for wrong in (*WORDS, *MESSAGES)),
            *(("braintorrent", wrong) for wrong in (*WORDS, "other-message")),
        ],
    )
    def test_a_word_that_no_site_gives_is_refused_and_a_right_one_is_not(self, name: str, wrong: str) -> None:
        village = Village.new(PLANS[name], **FOUR)
        village.round(1, steps(1), "abcd")
        right = read_letter(village.trained("a", 2, steps(2)["a"], tuple("abcd"), {}))
        assert self.word(village, right) is None

        found = self.word(village, bent(right, wrong), 0 if wrong == "samples" else 5)

        assert found is not None

    def test_samples_count_up_to_the_plan_s_bound(self) -> None:
        village = Village.new(PLANS["ring"], **FOUR)
        arrays = village.trained("a", 1, steps(1)["a"], tuple("abcd"), {})
        update = Update("a", arrays, 9_999_999)
        judgement, heard = village.relay.judge(village.record, 1, update, "", model())
        assert heard is not None
        assert (judgement.claimed, judgement.samples, heard.samples) == (9_999_999, 100_000, 100_000)

    @pytest.mark.parametrize("wrong", ["to", "version", "numbers", "names"])
    def test_a_model_for_a_peer_that_is_not_what_its_site_told_is_refused(self, wrong: str) -> None:
        village = Village.new(PLANS["braintorrent"], **FOUR)
        village.round(1, steps(1), "abcd")
        held = dict(village.holds("b"))
        digest, version, to = fingerprint(held), 1, ("a",)
        arrays = Letter(digest, version, {}, to, held).arrays()
        assert same(village.relay.check_model(village.record, "b", "a", arrays), held)
        if wrong == "to":
            to = ("c",)
        elif wrong == "version":
            version = 2
        elif wrong == "numbers":
            held["half"] = np.asarray(held["half"] * 2)
        else:
            held["more"] = np.zeros(1, np.float32)
        with pytest.raises(UpdateError):
            village.relay.check_model(
                village.record, "b", "a", Letter(digest, version, {}, to, held).arrays()
            )


class TestRecord:
    """The record as a file."""

    @staticmethod
    def record() -> records.Record:
        village = Village.new(PLANS["ring"], **FOUR)
        village.round(1, steps(1), "abcd")
        village.round(2, steps(2), "abd")
        return village.record

    def test_it_comes_back_as_it_was_and_its_bytes_depend_on_its_content_alone(self) -> None:
        record = self.record()
        assert records.read(record.arrays()) == record
        turned = dict(reversed(record.arrays().items()))
        assert fingerprint(turned) == fingerprint(record.arrays())
        assert {site for site, version in record.said if version == 1} == set(
            "abcd"
        )  # c has yet to mix these

    @pytest.mark.parametrize(
        "change",
        [
            {"start": np.zeros(31, np.uint8)},
            {"start": None},
            {"weight": np.zeros((2, 2), np.float32)},
            {"version:a": np.array([-1])},
            {"version:a": np.array([7])},
            {"version:a": np.array(1)},
            {"version:../x": np.array([1])},
            {"version:zoe": np.array([1])},
            {"samples:a": np.array([0])},
            {"samples:a": None},
            {"said:a:01": np.zeros(32, np.uint8)},
            {"said:a:x": np.zeros(32, np.uint8)},
            {"known:a:zoe": np.array([1])},
            {"known:a:b": np.array([99])},
            {"known:a": np.array([1])},
        ],
        ids=str,
    )
    def test_what_is_no_record_is_refused(self, change: dict[str, Any]) -> None:
        arrays = {**self.record().arrays(), **change}
        with pytest.raises(TrainerError):
            records.read({name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    "plan",
    [*PLANS.values(), plan_of("dfedavgm", density=1.0), plan_of("dfedavgm", bits=4, density=1.0)],
    ids=[*PLANS, "all", "all-four-bits"],
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whoever_is_away_or_late_no_site_s_model_leaves_its_bound(plan: Plan, data: st.DataObject) -> None:
    """What others hold of a site, and what it trains next; also of those who come back after many rounds."""
    village, past = Village.new(plan, **FOUR), list[Past]()
    for number in range(1, data.draw(st.integers(1, 8)) + 1):
        names = data.draw(st.sampled_from(["abcd", "abcd", "abc", "ad", "b"]))
        late = data.draw(st.sets(st.sampled_from("abcd"), max_size=2)) - set(names)
        updates = {site: far(one, data.draw(st.floats(1e-3, 5.0))) for site, one in steps(number).items()}
        village.round(number, updates, names, late)
        drawn = village.relay.drawn(number, tuple(names))
        past.append(Past({site: update_norm(updates[site]) for site in drawn}))
    held = [village.holds(site) for site in FOUR]
    told = [one for one in village.wholes.values() if one]  # models that stay at their sites are not there
    for one in [*held, *told]:
        check_reachable(one, model(), reach_of_peers(plan, past, model()))
    untold = [replace(one, told=False) for one in past]
    assert reach_of_peers(plan, untold, model()) >= reach_of_peers(plan, past, model())


def far(step: dict[str, Any], scale: float) -> dict[str, Any]:
    """Return a step so many times as long; counters stay."""
    return {
        name: np.asarray(array * scale, array.dtype) if array.dtype.kind == "f" else array
        for name, array in step.items()
    }


@pytest.mark.parametrize(
    ("name", "parameters", "sites", "most"),
    [
        ("braintorrent", {}, 4, 10.0),
        ("dfedavgm", {"bits": 32}, 6, 10.0),
        ("dfedavgm", {}, 3, 14.0),
        ("dfedavgm", {"density": 1.0}, 6, 14.0),
        ("dfedavgm", {}, 4, 16.0),
    ],
)
def test_ten_rounds_hold_models_of_small_arrays_near(
    name: str, parameters: dict[str, float], sites: int, most: float
) -> None:
    """In units of an update; arrays have 576 numbers."""
    rule, norms = PEERS[name], dict.fromkeys("abcdef"[:sites], 1.0)

    assert rule.farthest([Past(norms)] * 10, parameters, 3, [576, 16]) <= most


def test_nobody_s_norm_counts_for_more_than_the_plan_allows() -> None:
    plan = plan_of("braintorrent")

    assert (
        reach_of_peers(plan, [Past({"a": 1e9, "b": 1.0}), Past({"b": 2.0})], {}) == plan.max_update_norm + 2
    )


def test_mixing_leaves_of_a_distance_what_two_neighbourhoods_do_not_share() -> None:
    assert contraction_of("abc", {}, 0) == pytest.approx(0.0)
    assert contraction_of("abcd", {}, 0) == pytest.approx(1 / 3)
    assert contraction_of("abcde", {}, 0) == pytest.approx(2 / 3)
    assert contraction_of("abcdef", {}, 0) == pytest.approx(1.0)
    assert contraction_of("a", {}, 0) == pytest.approx(0.0)
