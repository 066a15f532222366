from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.trainer.samples import drawn_dataset, small_task
from trainer.datasets import Dataset, Samples
from trainer.errors import DatasetError, UpdateError
from trainer.local_round import LocalUpdate, local_round
from trainer.networks import initial_weights
from trainer.privacy.noise import SecureNoise, SeededNoise
from trainer.privacy.promise import PrivacyError, Promise
from trainer.privacy.training import noised_update
from trainer.strategies import update_norm
from trainer.task import LocalSpec, NetworkSpec
from trainer.weights_io import to_bytes

STEP = small_task(
    local=LocalSpec(
        optimizer="sgd",
        batch_size=4,
        local_steps=1,
        learning_rate=1.0,
        weight_decay=0.0,
        shift_fraction=0.0,
        gain_fraction=0.0,
    )
)
SGD = Promise("dp-sgd", clip_norm=0.5, noise_multiplier=1.0, epsilon=50.0, delta=1e-5, sampling_rate=1.0)
GAUSSIAN = Promise("update-gaussian", clip_norm=0.5, noise_multiplier=2.0, epsilon=50.0, delta=1e-5)


class NoNoise(SeededNoise):
    """Samples subjects, adds nothing: shows what the noise must hide."""

    def normal(self, count: int) -> Any:
        return np.zeros(count)


def trained(
    samples: Samples, promise: Promise, noise: SeededNoise | SecureNoise, **changes: Any
) -> LocalUpdate:
    dataset = Dataset(samples, drawn_dataset(0, STEP).validation)
    options: dict[str, Any] = {"task": STEP, **changes}
    task = options.pop("task")
    return local_round(task, initial_weights(task), dataset, seed=1, privacy=promise, noise=noise, **options)


def test_one_subject_moves_a_step_by_the_clipping_norm_at_most_however_many_cases_it_has() -> None:
    others = drawn_dataset(3, STEP, train=6).train
    many = drawn_dataset(4, STEP, train=12).train
    loud = Samples(many.x * 50, many.y, ("same",) * len(many))

    without = trained(others, SGD, NoNoise(1)).delta
    having = trained(Samples.join([others, loud]), SGD, NoNoise(1)).delta

    moved = update_norm({name: having[name] - without[name] for name in having})
    assert moved == pytest.approx(SGD.clip_norm / STEP.local.batch_size, rel=1e-4)


def test_the_noise_on_a_step_has_the_promised_deviation() -> None:
    samples = drawn_dataset(3, STEP, train=6).train
    still = trained(samples, SGD, NoNoise(1)).delta
    noisy = trained(samples, SGD, SecureNoise()).delta

    parts = [np.ravel(noisy[name] - still[name]) for name in still]
    expected = SGD.clip_norm * SGD.noise_multiplier / STEP.local.batch_size
    assert np.std(np.concatenate(parts)) == pytest.approx(expected, rel=0.1)


def test_seeded_noise_repeats_and_secure_noise_does_not() -> None:
    samples = drawn_dataset(3, STEP, train=6).train
    promise = replace(SGD, sampling_rate=0.5)

    def made(noise: SeededNoise | SecureNoise) -> bytes:
        return to_bytes(trained(samples, promise, noise).delta)

    assert made(SeededNoise(5)) == made(SeededNoise(5))
    assert made(SeededNoise(5)) != made(SeededNoise(6))
    assert made(SecureNoise()) != made(SecureNoise())
    assert trained(samples, promise, SecureNoise()).noise_source == "secure"


def test_a_step_that_draws_nobody_is_noise_alone() -> None:
    promise = replace(SGD, sampling_rate=1e-6)
    samples = drawn_dataset(3, STEP, train=6).train

    assert update_norm(trained(samples, promise, NoNoise(1)).delta) == 0
    assert update_norm(trained(samples, promise, SeededNoise(1)).delta) > 0


def test_a_whole_update_is_clipped_and_then_noised() -> None:
    delta = {"a": np.full(40_000, 3.0, np.float32), "b": np.full((100, 100), -2.0, np.float32)}

    still = noised_update(delta, GAUSSIAN, NoNoise(1))
    noisy = noised_update(delta, GAUSSIAN, SecureNoise())

    assert update_norm(still) == pytest.approx(0.5, rel=1e-5)
    assert {name: array.dtype for name, array in noisy.items()} == {"a": np.float32, "b": np.float32}
    assert np.std(noisy["a"] - still["a"]) == pytest.approx(1.0, rel=0.03)
    with pytest.raises(UpdateError, match="count"):
        noised_update({"count": np.zeros(1, np.int64)}, GAUSSIAN, NoNoise(1))


def test_an_update_goes_out_with_noise_under_every_mechanism_and_within_the_plan_s_norm() -> None:
    samples = drawn_dataset(3, STEP, train=6).train

    update = trained(samples, GAUSSIAN, SecureNoise(), max_norm=1.0)

    assert update.noise_source == "secure"
    assert update.norm > 1.0
    assert update_norm(update.delta) == pytest.approx(1.0, rel=1e-4)


def test_cases_of_unknown_people_and_batch_normalisation_are_refused() -> None:
    samples = drawn_dataset(3, STEP, train=6).train
    with pytest.raises(DatasetError, match="whose"):
        trained(Samples(samples.x, samples.y), SGD, NoNoise(1))
    batch = replace(STEP, network=NetworkSpec("resnet", {**STEP.network.parameters, "norm": "batch"}))
    for promise in (SGD, GAUSSIAN):
        with pytest.raises(PrivacyError, match="group"):
            trained(samples, promise, NoNoise(1), task=batch)
    with pytest.raises(PrivacyError, match="scaffold"):
        SGD.check_fits(STEP, "scaffold")


def test_secure_numbers_are_standard_normal_and_uniform() -> None:
    normal, uniform = SecureNoise().normal(200_000), SecureNoise().uniform(200_000)

    assert abs(float(np.mean(normal))) < 0.02
    assert float(np.std(normal)) == pytest.approx(1.0, abs=0.02)
    assert float(np.mean(np.abs(normal) < 1)) == pytest.approx(0.6827, abs=0.01)
    assert 0 <= float(uniform.min()) < 0.001
    assert 0.999 < float(uniform.max()) < 1
