"""Sites for logistic regression, as the papers on drift and on adaptive servers have them.

All sites of a set have the same held-out cases: those of all sites together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.preprocessing import PreprocessingSpec, prepare_pixels
from tests.shared_data import shared_data_dir
from tests.trainer.samples import small_task
from trainer.datasets import Dataset, Samples
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Pictures = NDArray[np.float32]
    Labels = NDArray[np.uint8]

SORTED_SITES: Final = 10
SORTED_TRAIN: Final = 60
SORTED_HELD_OUT: Final = 400
SYNTHETIC_SITES: Final = 30
SPARSE_SITES: Final = 20
SPARSE_TRAIN: Final = 100
SPARSE_HELD_OUT: Final = 1000
_EDGE: Final = 8  # of drawn pictures: 64 features, where Li 2020 has 60
_WIDE: Final = 32  # of sparse ones: 1,024 features
_PRESENT: Final = 40  # of them in a case, on average

DESCENT: Final = small_task(
    network=NetworkSpec("linear"),
    preprocessing=PreprocessingSpec(rows=_EDGE, columns=_EDGE),
    local=LocalSpec(
        "sgd", batch_size=10, local_steps=10, weight_decay=0.0, shift_fraction=0.0, gain_fraction=0.0
    ),
)
SORTED: Final = replace(DESCENT, preprocessing=PreprocessingSpec(rows=14, columns=14, standard_deviation=0.5))
SPARSE: Final = replace(DESCENT, preprocessing=PreprocessingSpec(rows=_WIDE, columns=_WIDE))


def sorted_by_label(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of one hospital's children at 14 pixels: half of the sites have pneumonia alone."""
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    generator = np.random.default_rng(seed)
    piles = [generator.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    half = SORTED_SITES // 2 * SORTED_TRAIN
    end = half + SORTED_HELD_OUT // 2
    x = [_prepared(images[pile[:end]]) for pile in piles]
    held_out = _samples(np.concatenate([one[half:] for one in x]), np.repeat((0, 1), SORTED_HELD_OUT // 2))
    parts = [part for label in (0, 1) for part in np.split(x[label][:half], SORTED_SITES // 2)]
    return {
        f"children-{i}": Dataset(_samples(part, np.full(len(part), i >= SORTED_SITES // 2)), held_out)
        for i, part in enumerate(parts)
    }


def synthetic(seed: int, alpha: float = 1.0, beta: float = 1.0) -> dict[str, Dataset]:
    """Synthetic(alpha, beta) of Li 2020 with two classes, as pictures of 64 pixels.

    At each site another model makes the labels (``alpha``) of other pictures (``beta``), whose pixels have
    variances of 1, 2^-1.2, 3^-1.2 and so on; sites' sizes are log-normal. A fifth of each site is held out.
    """
    generator = np.random.default_rng(seed)
    features = _EDGE * _EDGE
    scales = np.arange(1, features + 1) ** -0.6
    trains, held = [], []
    for _ in range(SYNTHETIC_SITES):
        count = min(1000, round(generator.lognormal(4, 2)) + 50)
        models = generator.normal(generator.normal(0, alpha**0.5), 1, (2, features + 1))
        centre = generator.normal(generator.normal(0, beta**0.5), 1, features)
        x = centre + generator.normal(size=(count, features)) * scales
        y = np.argmax(x @ models[:, 1:].T + models[:, 0], axis=1)
        pictures, last = x.reshape(-1, 1, _EDGE, _EDGE).astype(np.float32), count // 5
        trains.append(_samples(pictures[last:], y[last:]))
        held.append((pictures[:last], y[:last]))
    return _measured_on_all(trains, *(np.concatenate(one) for one in zip(*held, strict=True)))


def sparse(seed: int) -> dict[str, Dataset]:
    """Pictures of few lit pixels, rare ones most: the bags of words of Reddi 2021, drawn.

    Pixel j is lit with a chance that falls as 1 / j; each tells as much of the label where it is lit. Sites
    have favourites among the pixels.
    """
    generator = np.random.default_rng(seed)
    features = _WIDE * _WIDE
    chances = 1 / np.arange(1, features + 1)
    tells = generator.normal(0, 1, features)
    trains, held = [], []
    for _ in range(SPARSE_SITES):
        own = chances * generator.lognormal(0, 1, features)
        own = np.minimum(own * _PRESENT / own.sum(), 0.9)
        count = SPARSE_TRAIN + SPARSE_HELD_OUT // SPARSE_SITES
        x = (generator.random((count, features)) < own).astype(np.float32)
        logits = x @ tells
        y = generator.random(count) < 1 / (1 + np.exp(-logits))
        pictures = x.reshape(-1, 1, _WIDE, _WIDE)
        trains.append(_samples(pictures[:SPARSE_TRAIN], y[:SPARSE_TRAIN]))
        held.append((pictures[SPARSE_TRAIN:], y[SPARSE_TRAIN:]))
    return _measured_on_all(trains, *(np.concatenate(one) for one in zip(*held, strict=True)))


def _measured_on_all(trains: Sequence[Samples], x: Pictures, y: NDArray[np.generic]) -> dict[str, Dataset]:
    held_out = _samples(x, y)
    return {f"site-{i:02}": Dataset(train, held_out) for i, train in enumerate(trains)}


def _prepared(images: NDArray[np.uint8]) -> Pictures:
    return np.stack([prepare_pixels(image, SORTED.preprocessing) for image in images])


def _samples(x: Pictures, y: NDArray[np.generic]) -> Samples:
    return Samples(x, np.asarray(y).astype(np.uint8))
