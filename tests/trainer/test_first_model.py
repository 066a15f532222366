"""What a site takes for a global model of a plan, and what it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.consortium.block import stated_norm
from tests.trainer.federation.plans import make_plan
from trainer.compression import Compression
from trainer.compression.steps import WayBack
from trainer.errors import UnfitModelError
from trainer.federation.plan import Strategy
from trainer.first_model import check_reachable, first_model, is_bounded, reach
from trainer.privacy.promise import Promise
from trainer.strategies import STRATEGIES, Contribution, clip_update, update_norm
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.federation.plan import Plan
    from trainer.weights_io import Weights

PLAN = make_plan(max_update_norm=2.0)


def moved(plan: Plan, distance: float) -> Weights:
    """Return the plan's first model, one array of it moved by a distance."""
    weights = dict(first_model(plan.task, plan.strategy.name, plan.seed))
    array = weights["conv1.weight"]
    weights["conv1.weight"] = array + np.float32(distance / np.sqrt(array.size))
    return weights


def check(plan: Plan, weights: Weights, rounds: int, norm: float = 1e9) -> None:
    """Check after so many rounds of three sites that all state this norm, the plan's bound by default."""
    first = first_model(plan.task, plan.strategy.name, plan.seed)
    check_reachable(weights, first, reach(plan, [[norm] * 3] * rounds, 0, first))


def test_models_in_files_are_checked_alike(tmp_path: Path) -> None:
    first = Stored.write(tmp_path / "first", moved(PLAN, 0.0))
    near, far = (Stored.write(tmp_path / f"{one}", moved(PLAN, one)) for one in (1.9, 2.1))

    check_reachable(near, first, 2.0)
    with pytest.raises(UnfitModelError, match="seed"):
        check_reachable(far, first, 2.0)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "median", "variation-aware", "cyclic"])
def test_the_first_round_is_on_the_model_that_the_seed_gives(strategy: str) -> None:
    plan = make_plan(strategy=Strategy(strategy, {}))

    check(plan, moved(plan, 0.0), 0)
    with pytest.raises(UnfitModelError, match="seed"):
        check(plan, moved(plan, 0.1), 0)


def test_another_seed_gives_another_first_model() -> None:
    with pytest.raises(UnfitModelError, match="seed"):
        check(PLAN, moved(make_plan(seed=PLAN.seed + 1), 0.0), 0)


@pytest.mark.parametrize(("rounds", "rate"), [(1, 1.0), (3, 1.0), (1, 0.5)])
def test_a_mean_of_bounded_updates_lies_within_their_bound(rounds: int, rate: float) -> None:
    plan = make_plan(max_update_norm=2.0, strategy=Strategy("fedavg", {"server_learning_rate": rate}))

    check(plan, moved(plan, 1.99 * rounds * rate), rounds)
    with pytest.raises(UnfitModelError, match="seed"):
        check(plan, moved(plan, 2.1 * rounds * rate), rounds)


def test_a_model_of_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(UnfitModelError):
        check(PLAN, moved(PLAN, float("nan")), 2)


def test_other_tensors_are_refused() -> None:
    weights = moved(PLAN, 0.0)

    with pytest.raises(UnfitModelError, match="tensors"):
        check(PLAN, {**weights, "more": weights["fc.bias"]}, 0)
    with pytest.raises(UnfitModelError, match="shapes"):
        check(PLAN, {**weights, "fc.bias": np.zeros(2, np.float32)}, 0)


def test_what_a_site_cannot_bound_is_not_bounded() -> None:
    packed = make_plan(compression=Compression("int8", both_ways=True))
    later = make_plan(initial_sha256="ab" * 32)
    own = make_plan(strategy=Strategy("braintorrent", {}))

    assert [is_bounded(one, 0) for one in (PLAN, packed, later, own)] == [True, True, False, True]
    assert [is_bounded(one, 1) for one in (PLAN, packed, later, own)] == [True, True, True, False]


def test_what_sites_state_bounds_a_round_and_the_plan_bounds_what_they_state() -> None:
    check(PLAN, moved(PLAN, 0.29), 1, 0.3)
    check(PLAN, moved(PLAN, 0.59), 2, 0.3)
    for distance, rounds in ((0.32, 1), (0.62, 2)):
        with pytest.raises(UnfitModelError, match="seed"):
            check(PLAN, moved(PLAN, distance), rounds, 0.3)
    assert reach(PLAN, [[0.3, 50.0]], 0, {}) == PLAN.max_update_norm
    assert reach(PLAN, [[0.3], [0.1], [0.2]], 1, {}) == pytest.approx(0.3)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_honest_run_of_any_strategy_leaves_its_bound(name: str, data: st.DataObject) -> None:
    """Whatever sites send, whoever is away: seen from the first model, and from any later one."""
    parameters = data.draw(PARAMETERS.get(name, st.just({})))
    most = data.draw(st.sampled_from([0.5, 50.0]))
    plan = make_plan(strategy=Strategy(name, parameters), max_update_norm=most, **BESIDE.get(name, {}))
    rule = STRATEGIES[name]
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    models, norms, state = [rule.prepared(NETWORK)], list[list[float]](), dict[str, Any]()
    for _ in range(5):
        chosen = [f"s{i}" for i in range(draw.integers(1, 6))][: 1 if rule.one_at_a_time else None]
        scale = 10.0 ** draw.uniform(-3, 1)
        sent = [
            Contribution(site, clip_update(drawn(models[-1], draw, scale), most), int(draw.integers(1, 99)))
            for site in chosen
        ]
        model, state = rule.aggregate(models[-1], sent, state, parameters)
        norms.append([(stated_norm(update_norm(one.delta)) or 0) / 1000 for one in sent])
        models.append(model)
    for since, known in enumerate(models[:-1]):
        check_reachable(models[-1], known, reach(plan, norms, since, known))
    most = reach(plan, norms, 0, models[0])
    with pytest.raises(UnfitModelError):
        check_reachable(away(models[-1], models[0], most), models[0], most)


@pytest.mark.parametrize("text", ["int8", "top-k:share=0.1", "turns:count=3", "float16", "sketch"])
@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "trimmed-mean", "random-transfer"])
def test_no_honest_run_whose_steps_are_packed_leaves_its_bound(name: str, text: str) -> None:
    """Rounds of long and of short updates; in the middle a site is away, then one sees them all at once."""
    packing = Compression.parse(f"{text}{',' if ':' in text else ':'}both_ways")
    plan = make_plan(strategy=Strategy(name, {}), max_update_norm=5.0, compression=packing)
    rule, draw = STRATEGIES[name], np.random.default_rng(4)
    models, norms = [NETWORK], list[list[float]]()
    state, way = dict[str, Any](), WayBack.of(packing, plan.seed)
    for number, scale in enumerate((1.0, 1e-3, 0.3, 1e-4, 1e-4, 3.0), 1):
        chosen = [f"s{i}" for i in range(3)][: 1 if rule.one_at_a_time else None]
        sent = [
            Contribution(one, clip_update(drawn(models[-1], draw, scale), plan.max_update_norm), 3)
            for one in chosen
        ]
        aggregate, state = rule.aggregate(models[-1], sent, state, {})
        norms.append([update_norm(one.delta) for one in sent])
        models.append(way.moved(number, models[-1], aggregate, chosen))
        for since, known in enumerate(models[:-1]):
            check_reachable(models[-1], known, reach(plan, norms, since, known))
    most = reach(plan, norms, 0, NETWORK)
    with pytest.raises(UnfitModelError):
        check_reachable(away(models[-1], NETWORK, most), NETWORK, most)


def test_the_crafted_weights_are_out_of_reach_of_packed_steps_too() -> None:
    """They lie 73 away; honest norms of such a network are 0.2 to 0.44, and its plan allows 100."""
    plan = make_plan(compression=Compression("int8", both_ways=True))
    first = first_model(plan.task, plan.strategy.name, plan.seed)

    for rounds in range(1, 100):
        assert reach(plan, [[0.5, 0.5]] * rounds, 0, first) < 0.5 * (rounds + 0.2)
        assert reach(plan, [[0.5, 0.5]] * rounds, rounds - 1, first) < 0.65
    with pytest.raises(UnfitModelError):
        check(plan, moved(plan, 73.0), 1, 0.5)


NETWORK: Final[Weights] = {
    "conv.weight": np.linspace(-1, 1, 48, dtype=np.float32).reshape(4, 3, 4),
    "norm.weight": np.ones(4, np.float32),
    "norm.bias": np.zeros(4, np.float32),
    "norm.running_mean": np.zeros(4, np.float32),
    "norm.running_var": np.ones(4, np.float32),
    "norm.num_batches_tracked": np.array(3, np.int64),
    "appearance.weight": np.ones(3, np.float32),
}
BESIDE: Final[dict[str, dict[str, Any]]] = {
    "svt": {"privacy": Promise("svt", 0.01, 5.0, 1e3, 1e-3, share=0.1)},
    "transfer": {"initial_sha256": "ab" * 32},
}
RATE: Final = st.floats(0.01, 3.0)
PARAMETERS: Final[dict[str, st.SearchStrategy[dict[str, Any]]]] = {
    **dict.fromkeys(("fedavg", "scaffold", "swarm"), st.fixed_dictionaries({"server_learning_rate": RATE})),
    "fedavgm": st.fixed_dictionaries({"server_learning_rate": RATE, "beta1": st.floats(0, 0.99)}),
    **dict.fromkeys(
        ("fedadam", "fedyogi"),
        st.fixed_dictionaries({"beta1": st.floats(0, 0.99), "tau": st.sampled_from([1e-5, 1e-3, 0.1])}),
    ),
    "trimmed-mean": st.fixed_dictionaries({"trim": st.floats(0, 0.4)}),
}


def drawn(model: Weights, draw: np.random.Generator, scale: float) -> Weights:
    """Draw an update; a variance does not become negative by it."""
    return {
        name: np.asarray(np.abs(one) if name.endswith("running_var") else one, dtype=array.dtype)
        for name, array in model.items()
        for one in [draw.normal(0, scale, array.shape)]
    }


def away(model: Weights, known: Weights, most: float) -> Weights:
    """Move a model beyond a bound."""
    array = known["conv.weight"]
    step = 1.1 * (most + 0.01) * 1.01 / array.size**0.5
    return {**model, "conv.weight": array + np.float32(step)}
