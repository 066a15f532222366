from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tenseal
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.samples import small_task
from trainer import strategies
from trainer.compression import Compression, Draw
from trainer.encryption import Encryption, EncryptionError, ckks, model
from trainer.errors import UpdateError
from trainer.federation import encrypted
from trainer.federation.aggregation import Update
from trainer.federation.errors import AggregationError, PlanError
from trainer.federation.plan import Plan, Strategy
from trainer.strategies import Contribution
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPIENTS = {"north": "a" * 64, "south": "b" * 64, "west": "c" * 64}
SECRET = ckks.new_secret()


@pytest.fixture(scope="module")
def sites() -> ckks.Key:
    return ckks.Key.of_sites(SECRET)


def first(size: int = 5000) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "conv.weight": generator.normal(0, 0.1, (size,)).astype(np.float32),
        "scalar": np.array(0.5, np.float32),
        "norm.num_batches_tracked": np.array([3], np.int64),
    }


def delta(seed: int, size: int = 5000) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "conv.weight": generator.normal(0, 0.01, (size,)).astype(np.float32),
        "scalar": np.array(generator.normal(0, 0.1), np.float32),
        "norm.num_batches_tracked": np.array([5], np.int64),
    }


def plan(**changes: Any) -> Plan:
    given = Plan(
        run_id="run",
        name="encrypted",
        task=small_task(),
        strategy=Strategy("fedavg", {}),
        total_rounds=4,
        min_sites=2,
        minimum_cohort=1,
        expires_at=datetime.now(UTC) + timedelta(days=1),
        round_timeout_s=60.0,
        approval_wait_s=60.0,
        seed=1,
        encryption=Encryption(RECIPIENTS),
    )
    return replace(given, **changes)


def update(key: ckks.Key, site: str, of: Mapping[str, Any], number: int = 1, samples: int = 10) -> Update:
    return Update(site, model.encrypted(key, of, 1, number), samples)


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("turns", [None, 1, 3])
def test_the_mean_is_fedavgs_though_nobody_read_an_update(
    sites: ckks.Key, turns: int | None, rate: float
) -> None:
    packing = None if turns is None else Compression("turns", {"count": turns})
    asked = plan(compression=packing, strategy=Strategy("fedavg", {"server_learning_rate": rate}))
    plain, standing = first(), dict(first())
    samples = {"west": 7, "north": 30, "south": 13}
    kept: dict[str, Any] = {}
    for number in range(1, 5):
        contributions, updates = [], []
        for at, (site, count) in enumerate(samples.items()):
            leaving = counted = delta(10 * number + at)
            if packing is not None:
                packed = packing.pack(counted, kept.get(site, {}), 100.0, Draw(0, number))
                leaving, counted, kept[site] = packed.arrays, packed.update, packed.residual
            contributions.append(Contribution(site, counted, count))
            cipher = model.encrypted(sites, leaving, asked.turns, number)
            assert set(cipher) == set(model.expected(plain, asked.turns, number))
            updates.append(Update(site, cipher, count))
        result = encrypted.aggregate(asked, standing, number, updates)
        assert [one.reason for one in result.judgements] == [None] * 3
        plain, _ = strategies.get("fedavg").aggregate(plain, contributions, {}, asked.strategy.parameters)
        standing = result.weights
        read = model.readable(sites, standing, asked.turns, 100.0 * number)

        assert model.is_encrypted(standing)
        for name, array in plain.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_allclose(read[name], array, atol=1e-6)


def test_the_coordinator_can_read_nothing(sites: ckks.Key) -> None:
    result = encrypted.aggregate(
        plan(), first(), 1, [update(sites, site, delta(at)) for at, site in enumerate(("north", "south"))]
    )

    with pytest.raises(UpdateError, match="key"):
        model.readable(ckks.Key.of_coordinator(), result.weights, 1, 1e3)
    other = ckks.Key.of_sites(ckks.new_secret())
    with pytest.raises(UpdateError):
        model.readable(other, result.weights, 1, 1e3)
    clear = delta(0)["conv.weight"].tobytes()
    assert clear[:64] not in to_bytes(dict(result.weights))


def test_the_same_update_never_looks_the_same(sites: ckks.Key) -> None:
    one, two = (model.encrypted(sites, delta(1), 1, 1) for _ in range(2))

    assert all(not np.array_equal(one[name], two[name]) for name in one)


def hostile(sites: ckks.Key) -> dict[str, dict[str, Any]]:
    """Return encrypted updates that no site makes, by what is wrong."""
    good = model.encrypted(sites, delta(1), 1, 1)
    name = next(iter(good))
    larger = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        16384,
        coeff_mod_bit_sizes=[60, 40, 60],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    larger.global_scale = 2.0**40
    foreign = np.frombuffer(tenseal.ckks_vector(larger, [1.0] * 4096).serialize(), np.uint8)
    fine = tenseal.ckks_vector(sites.context, [1.0] * 4096, scale=2.0**20)
    short = tenseal.ckks_vector(sites.context, [1.0] * 5)
    used = tenseal.ckks_vector(sites.context, [1.0] * 4096) * 2.0
    made = {
        "one missing": {other: one for other, one in good.items() if other != name},
        "one more": {**good, ";ckks.9.0": good[name]},
        "of another round's part": model.encrypted(
            sites, Compression("turns", {"count": 2}).pack(delta(1), {}, 10.0, Draw(0, 2)).arrays, 2, 2
        ),
        "readable": delta(1),
        "empty": {**good, name: np.zeros(0, np.uint8)},
        "zeros": {**good, name: np.zeros(1000, np.uint8)},
        "cut": {**good, name: good[name][:5000]},
        "doubles": {**good, name: good[name].astype(np.float64)},
        "a table": {**good, name: good[name][None]},
        "too long": {**good, name: np.zeros(ckks.MAX_CIPHERTEXT + 1, np.uint8)},
        "of other parameters": {**good, name: foreign},
    }
    for label, vector in (("of another scale", fine), ("short", short), ("multiplied before", used)):
        made[label] = {**good, name: np.frombuffer(vector.serialize(), np.uint8)}
    return made


def test_what_is_no_encrypted_update_is_refused_and_the_others_count(sites: ckks.Key) -> None:
    fair = [update(sites, site, delta(at)) for at, site in enumerate(("north", "south"))]
    for what, arrays in hostile(sites).items():
        result = encrypted.aggregate(plan(), first(), 1, [*fair, Update("west", arrays, 10)])

        reasons = {one.site: one.reason for one in result.judgements}
        assert reasons["west"], what
        assert reasons["north"] is reasons["south"] is None
        read = model.readable(sites, result.weights, 1, 10.0)
        mean = (delta(0)["conv.weight"] + delta(1)["conv.weight"]) / 2
        np.testing.assert_allclose(read["conv.weight"], first()["conv.weight"] + mean, atol=1e-6)


def test_too_few_updates_and_foreign_claims_do_not_make_a_round(sites: ckks.Key) -> None:
    fair = update(sites, "north", delta(0))

    with pytest.raises(AggregationError):
        encrypted.aggregate(plan(), first(), 1, [fair])
    with pytest.raises(AggregationError):
        encrypted.aggregate(plan(), first(), 1, [fair, update(sites, "south", delta(1), samples=0)])


def test_a_model_that_moved_too_far_is_refused_at_the_site(sites: ckks.Key) -> None:
    """The bound of a mean holds for any coordinator, though it reads nothing."""
    far = {name: array * 1000 if array.dtype.kind == "f" else array for name, array in delta(0).items()}
    result = encrypted.aggregate(
        plan(), first(), 1, [update(sites, "north", far), update(sites, "south", far)]
    )

    with pytest.raises(UpdateError, match="farther"):
        model.readable(sites, result.weights, 1, 100.0)
    broken = {**result.weights, ";ckks.0.0": np.zeros(300, np.uint8)}
    with pytest.raises(UpdateError):
        model.readable(sites, broken, 1, 1e6)


def test_only_a_key_of_these_parameters_is_taken() -> None:
    weak = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        8192,
        coeff_mod_bit_sizes=[50, 40, 50],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    options = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    for wrong in (
        b"",
        b"no key",
        SECRET[:1000],
        weak.serialize(save_secret_key=True, **options),
        weak.serialize(save_secret_key=False, **options),
    ):
        with pytest.raises(EncryptionError):
            ckks.Key.of_sites(wrong)


@given(numbers=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), share=st.floats(1e-3, 1.0))
@settings(max_examples=25, deadline=None)
def test_numbers_come_back_within_the_schemes_precision(numbers: list[float], share: float) -> None:
    key = ckks.Key.of_sites(SECRET)
    vector = np.array(numbers)

    read = key.decrypt(ckks.Key.of_coordinator().weighted_sum([key.encrypt(vector)], [share], None))

    np.testing.assert_allclose(read[: vector.size], share * vector, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(read[vector.size :], 0.0, atol=1e-6)


@pytest.mark.slow
def test_bytes_that_somebody_changed_never_end_the_process(sites: ckks.Key) -> None:
    """In a process of its own: a fault of the library would end this one."""
    ciphertext = model.encrypted(sites, delta(1, 10), 1, 1)[";ckks.0.0"].tobytes()

    done = subprocess.run(
        [sys.executable, "-c", _FUZZ], input=ciphertext, capture_output=True, check=False, timeout=300
    )

    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert int(done.stdout) > 300


_FUZZ = """
import random, sys
import numpy as np
from trainer.encryption import ckks
from trainer.errors import UpdateError
good, chance, refused = sys.stdin.buffer.read(), random.Random(7), 0
key = ckks.Key.of_coordinator()
for number in range(1000):
    content = bytearray(good)
    low = 0 if number % 2 else len(content) - 1
    for _ in range(chance.randint(1, 20)):
        content[chance.randrange(200 if number % 2 else len(content))] = chance.randrange(256)
    if number % 5 == 0:
        content = content[: chance.randrange(len(content))]
    given = np.frombuffer(bytes(content), np.uint8)
    try:
        key.weighted_sum([given], [0.5], None)
    except UpdateError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"strategy": Strategy("median", {})}, "median"),
        ({"strategy": Strategy("krum", {})}, "krum"),
        ({"strategy": Strategy("auto-fedavg", {})}, "auto-fedavg"),
        ({"strategy": Strategy("cyclic", {})}, "cyclic"),
        ({"strategy": Strategy("scaffold", {})}, "scaffold"),
        ({"strategy": Strategy("fedadam", {})}, "fedadam"),
        ({"compression": Compression("int8")}, "compression"),
        ({"min_sites": 1}, "min_sites"),
        ({"min_sites": 4}, "min_sites"),
        ({"max_update_norm": 1e5}, "max_update_norm"),
    ],
)
def test_a_plan_that_needs_to_look_into_updates_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        plan(**changes)


def test_a_plan_names_who_gets_the_key_and_reads_back_unchanged() -> None:
    asked = plan(compression=Compression("turns", {"count": 2}))

    assert Plan.loads(asked.dumps()) == asked
    assert plan().sha256 != replace(plan(), encryption=None).sha256
    other = plan(encryption=Encryption({**RECIPIENTS, "west": "d" * 64}))
    assert other.sha256 != plan().sha256


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"scheme": "ckks"},
        {"scheme": "rot13", "recipients": RECIPIENTS},
        {"scheme": "ckks", "recipients": {"north": "a" * 64}},
        {"scheme": "ckks", "recipients": {**RECIPIENTS, "west": "b" * 64}},
        {"scheme": "ckks", "recipients": {**RECIPIENTS, "west": "xyz"}},
        {"scheme": "ckks", "recipients": {**RECIPIENTS, "we st": "d" * 64}},
        {"scheme": "ckks", "recipients": ["north", "south"]},
    ],
)
def test_json_that_is_no_encryption_is_refused(value: Any) -> None:
    with pytest.raises(EncryptionError):
        Encryption.from_json(value)
