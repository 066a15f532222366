"""Sites that differ, for comparing strategies: real hospitals, and drawn ones of one skew each."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.preprocessing import PreprocessingSpec, prepare_pixels
from tests.shared_data import shared_data_dir
from tests.trainer.samples import picture, small_task
from trainer.datasets import Dataset, Samples
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TRAIN: Final = 64
HELD_OUT: Final = 100
NOISE: Final = 200.0
# Shares of positive cases at the four sites of the label skew.
SHARES: Final = (0.08, 0.3, 0.7, 0.92)
# What the four machines of the feature skew do to a prepared picture: gain, offset, blur.
MACHINES: Final = ((1.0, 0.0, 0), (-1.0, 0.5, 0), (0.3, 2.0, 0), (2.0, -1.5, 1))

# Of the size and domain skew: training cases, and machines of which three invert.
SIZES: Final = (192, 16, 16, 16)
OTHER_MACHINES: Final = (MACHINES[0], MACHINES[1], MACHINES[1], (-0.5, 1.0, 0))
FEW: Final = 12
MANY: Final = 400
# As of the feature skew, but none inverts.
SCANNERS: Final = ((1.0, 0.0, 0), (0.4, 1.5, 0), (2.0, -1.5, 0), (0.6, -1.0, 1), (1.5, 1.0, 1))

# Batch normalisation for all, since one of the strategies is about it.
TASK: Final = small_task(
    preprocessing=PreprocessingSpec(rows=28, columns=28),
    network=NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"}),
    local=LocalSpec(batch_size=16, local_steps=5, learning_rate=3e-3, shift_fraction=0.0),
)


def two_hospitals(seed: int) -> dict[str, Dataset]:
    """Chest X-rays at 28 pixels: children of one hospital at two sites, adults of another at two."""
    folder = shared_data_dir() / "cxr_pneumonia"
    generator = np.random.default_rng(seed)
    with np.load(folder / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    chosen = generator.permutation(len(labels))[: 2 * (TRAIN + HELD_OUT)]
    sites = {
        f"children-{i}": _dataset(_prepared(images[part]), labels[part])
        for i, part in enumerate(np.split(chosen, 2))
    }
    with np.load(folder / "site_nih_covid_talo.npz") as content:
        images, labels, names = content["images64"], content["labels"], content["names"]
    people = np.array([str(name).rsplit("/", 1)[-1].split("_", 1)[0] for name in names])
    usable = generator.permutation(np.flatnonzero(labels != 2))
    parity = np.array([int(people[i]) % 4 for i in usable])  # sites, and parts of a site, share no patient
    for i in range(2):
        train, held_out = usable[parity == 2 * i][:TRAIN], usable[parity == 2 * i + 1][:HELD_OUT]
        both = np.concatenate([train, held_out])
        sites[f"adults-{i}"] = _dataset(_prepared(images[both]), labels[both], len(train))
    return sites


def adults_at_64_pixels(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of one hospital's adults at 64 pixels; sites, and parts of a site, share no patient."""
    generator = np.random.default_rng(seed)
    preprocessing = PreprocessingSpec(rows=64, columns=64)
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_nih_covid_talo.npz") as content:
        images, labels, names = content["images64"], content["labels"], content["names"]
    people = np.array([str(name).rsplit("/", 1)[-1].split("_", 1)[0] for name in names])
    usable = generator.permutation(np.flatnonzero(labels != 2))
    part = np.array([int(people[i]) % 8 for i in usable])
    sites = {}
    for i in range(4):
        train, held_out = usable[part == 2 * i][:TRAIN], usable[part == 2 * i + 1][:HELD_OUT]
        both = np.concatenate([train, held_out])
        x = np.stack([prepare_pixels(image, preprocessing) for image in images[both]])
        sites[f"adults-{i}"] = _dataset(x, labels[both], len(train))
    return sites


def label_skew(seed: int) -> dict[str, Dataset]:
    """Drawn pictures; sites see the finding rarely or nearly always, and are measured on what they see."""
    return {f"site-{i}": _drawn(seed * 10 + i, share) for i, share in enumerate(SHARES)}


def many_sites(seed: int) -> dict[str, Dataset]:
    """Drawn pictures at twelve sites; from 8 to 92 % of a site's cases have the finding."""
    return {f"site-{i:02}": _drawn(seed * 100 + i, 0.08 + i * 0.84 / 11) for i in range(12)}


def feature_skew(seed: int) -> dict[str, Dataset]:
    """Drawn pictures, labels alike; each site's machine changes contrast, brightness and sharpness."""
    return {f"site-{i}": _drawn(seed * 10 + i, 0.5, machine) for i, machine in enumerate(MACHINES)}


def size_and_domain_skew(seed: int) -> dict[str, Dataset]:
    """Drawn pictures: one site has most training cases, the others' machines show them otherwise."""
    return {
        f"site-{i}": _drawn(seed * 10 + i, 0.5, machine, train)
        for i, (train, machine) in enumerate(zip(SIZES, OTHER_MACHINES, strict=True))
    }


def few_labels(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of adults: two sites with twelve labelled cases each."""
    sites = two_hospitals(seed)
    return {
        name: Dataset(Samples(site.train.x[:FEW], site.train.y[:FEW]), site.validation)
        for name, site in sites.items()
        if name.startswith("adults")
    }


def few_of_another_disease(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of adults, COVID-19 or no finding: two sites with twelve labelled cases each."""
    images, labels, group = _adults(seed)
    sites = {}
    for i in range(2):
        piles = [np.flatnonzero((labels == label) & (group == i)) for label in (0, 2)]
        parts = [slice(0, FEW // 2), slice(FEW // 2, FEW // 2 + 50)]
        chosen = np.concatenate([pile[part] for part in parts for pile in piles])
        sites[f"adults-{i}"] = _dataset(_prepared(images[chosen]), labels[chosen] == 2, FEW)
    return sites


def adults(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of other adults, pneumonia or not: two sites with many labelled cases each."""
    images, labels, group = _adults(seed)
    sites = {}
    for i in range(2):
        chosen = np.flatnonzero((labels != 2) & (group == 2 + i))
        sites[f"adults-{2 + i}"] = _dataset(_prepared(images[chosen]), labels[chosen], len(chosen) - HELD_OUT)
    return sites


def _adults(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Return pictures, labels and one of four groups of people each, in an order drawn from the seed."""
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_nih_covid_talo.npz") as content:
        images, labels, names = content["images64"], content["labels"], content["names"]
    order = np.random.default_rng(seed).permutation(len(labels))
    people = [str(names[i]).rsplit("/", 1)[-1].split("_", 1)[0] for i in order]
    group = np.array([zlib.crc32(person.encode()) % 4 for person in people])
    covid = labels[order] == 2
    group[covid] = np.arange(int(covid.sum())) % 2  # all of them are for the sites with few labels
    return images[order], labels[order], group


def many_labels(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of children of another hospital: four sites with many labelled cases each."""
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    chosen = np.random.default_rng(seed).permutation(len(labels))[: 4 * (MANY + HELD_OUT)]
    return {
        f"children-{i}": _dataset(_prepared(images[part]), labels[part], MANY)
        for i, part in enumerate(np.split(chosen, 4))
    }


def skewed_hospital(seed: int) -> dict[str, Dataset]:
    """Chest X-rays of one hospital's children: sites see pneumonia rarely or nearly always.

    All are measured on as many cases with it as without.
    """
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    generator = np.random.default_rng(seed)
    piles = [list(generator.permutation(np.flatnonzero(labels == label))) for label in (0, 1)]
    sites = {}
    for i, share in enumerate(SHARES):
        positive = round(TRAIN * share)
        counts = ((TRAIN - positive, positive), (HELD_OUT // 2, HELD_OUT // 2))
        chosen = [piles[label].pop() for part in counts for label in (0, 1) for _ in range(part[label])]
        sites[f"children-{i}"] = _dataset(_prepared(images[chosen]), labels[chosen])
    return sites


def scanners(seed: int) -> dict[str, Dataset]:
    """Drawn pictures, labels alike; machines differ in contrast, brightness and sharpness, none inverts."""
    return {f"site-{i}": _drawn(seed * 10 + i, 0.5, machine) for i, machine in enumerate(SCANNERS)}


def few_of_another_machine(seed: int) -> dict[str, Dataset]:
    """Drawn pictures of a machine of its own: two sites with twelve labelled cases each."""
    return {f"other-{i}": _drawn(seed * 10 + 5 + i, 0.5, SCANNERS[-1], FEW) for i in range(2)}


def earlier_machines(seed: int) -> dict[str, Dataset]:
    """Drawn pictures of the other machines: a site each, with many labelled cases."""
    return {f"site-{i}": _drawn(seed * 10 + i, 0.5, one, MANY) for i, one in enumerate(SCANNERS[:-1])}


SETS: Final[dict[str, Callable[[int], dict[str, Dataset]]]] = {
    "two hospitals": two_hospitals,
    "label skew": label_skew,
    "feature skew": feature_skew,
}


def _drawn(
    seed: int, share: float, machine: tuple[float, float, int] = (1.0, 0.0, 0), train: int = TRAIN
) -> Dataset:
    generator = np.random.default_rng(seed)
    labels = (generator.random(train + HELD_OUT) < share).astype(np.uint8)
    labels[:2] = labels[train : train + 2] = (0, 1)
    pictures = np.stack([picture(generator, int(label), noise=NOISE) for label in labels])
    gain, offset, blur = machine
    x = _prepared(pictures) * np.float32(gain) + np.float32(offset)
    if blur:
        x = (x + np.roll(x, 1, 2) + np.roll(x, 1, 3) + np.roll(x, -1, 2) + np.roll(x, -1, 3)) / 5
    return _dataset(x.astype(np.float32), labels, train)


def _prepared(images: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.stack([prepare_pixels(image, TASK.preprocessing) for image in images])


def _dataset(x: NDArray[np.float32], labels: NDArray[np.generic], train: int = TRAIN) -> Dataset:
    y = np.asarray(labels).reshape(-1).astype(np.uint8)
    return Dataset(Samples(x[:train], y[:train]), Samples(x[train:], y[train:]))
