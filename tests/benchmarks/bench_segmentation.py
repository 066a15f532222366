"""Hippocampus volumes over four sites, Dice of strategies beside FedAvg: ``cloister bench segmentation``.

``python -m tests.benchmarks.bench_segmentation docs/results.md`` writes the section Hippocampus of that page
and leaves the others.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.preprocessing import PreprocessingSpec
from tests.benchmarks.bench_strategies import interval, told
from tests.trainer.masked import SEGMENTS, hippocampus, hippocampus_names, hippocampus_task, write
from trainer.baselines import cross_evaluate, train_local, train_pooled
from trainer.datasets import Dataset, Samples
from trainer.local_round import use_threads
from trainer.segmentation.building import build
from trainer.segmentation.folders import read_mask_folder
from trainer.segmentation.spec import SegmentationSpec
from trainer.simulation import simulate
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trainer.measuring import AnyMetrics

SEEDS: Final = 4
ROUNDS: Final = 10
SITES: Final = 4
TRAIN: Final = 20
NAMES: Final = ("fedavg", "fedprox", "fedbn", "ditto")
PARAMETERS: Final[dict[str, dict[str, float]]] = {"fedprox": {"mu": 0.1}}
# What the four machines do to a prepared volume: gain and offset; the second inverts.
MACHINES: Final = {
    "one scanner": ((1.0, 0.0),) * SITES,
    "four machines": ((1.0, 0.0), (-1.0, 0.5), (0.4, 1.5), (1.8, -1.0)),
}
# Batch normalisation for all, since one of the strategies is about it.
TASK: Final = hippocampus_task(
    preprocessing=PreprocessingSpec(rows=28, columns=20),
    segmentation=SegmentationSpec(3, SEGMENTS, slices=20, spacing_mm=(2.0, 2.0, 2.0)),
    network=NetworkSpec("unet", {"features": [8, 16, 32], "norm": "batch"}),
    local=LocalSpec(batch_size=4, local_steps=10, learning_rate=1e-2, shift_fraction=0.05),
)
Found = dict[str, float]


def run(seeds: int = SEEDS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure all; ``sets[data][strategy]`` has the mean Dice over sites, by seed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        prepared = Path(name) / "hippocampus.npz"
        volumes = prepare(prepared, Path(name) / "dicom")
        orders = [(str(prepared), data, seed, rounds) for seed in range(seeds) for data in MACHINES]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            found = dict(zip(orders, pool.map(measure, orders), strict=True))
    by_set = {
        data: paired([one for (_, of, _, _), one in sorted(found.items()) if of == data]) for data in MACHINES
    }
    minutes = round((time.monotonic() - started) / 60, 1)
    return {"seeds": seeds, "rounds": rounds, "volumes": volumes, "minutes": minutes, "sets": by_set}


def prepare(target: Path, folder: Path) -> int:
    """Write every volume as MR series and SEG, read them as a site does, and keep the arrays."""
    for name in hippocampus_names():
        write(folder, name.split(".", 1)[0], hippocampus(name))
    whole = build(read_mask_folder(folder, TASK).stored, TASK, None)
    both = Samples.join([whole.train, whole.validation])
    order = np.argsort(both.pseudonyms)  # UIDs are new each time, and so is the order of cases
    np.savez(target, x=both.x[order], y=both.y[order])
    return len(both)


def sites_of(path: Path, data: str, seed: int) -> dict[str, Dataset]:
    """Deal the volumes out to four sites, whose machines show them as the set says."""
    with np.load(path, allow_pickle=False) as content:
        x, y = content["x"], content["y"]
    dealt = np.random.default_rng(seed).permutation(len(x))
    size = len(x) // SITES
    sites = {}
    for number, (gain, offset) in enumerate(MACHINES[data]):
        chosen = dealt[number * size : (number + 1) * size]
        shown = (x[chosen] * np.float32(gain) + np.float32(offset)).astype(np.float32)
        owners = tuple(str(position) for position in chosen)
        parts = (slice(None, TRAIN), slice(TRAIN, None))
        train, held_out = (Samples(shown[part], y[chosen][part], owners[part]) for part in parts)
        sites[f"site-{number}"] = Dataset(train, held_out)
    return sites


def measure(order: tuple[str, str, int, int]) -> Found:
    """Run every strategy and both baselines on one set of sites, from one seed."""
    path, data, seed, rounds = order
    use_threads(1)
    sites = sites_of(Path(path), data, seed)
    found = {}
    for name in NAMES:
        options: dict[str, Any] = {"strategy": name, "parameters": PARAMETERS.get(name), "seed": seed}
        found[name] = _dice(simulate(TASK, sites, rounds=rounds, **options).final.values())
    alone = {name: train_local(TASK, site, rounds=rounds, seed=seed) for name, site in sites.items()}
    models = {**alone, "pooled": train_pooled(TASK, sites, rounds=rounds, seed=seed)}
    table = cross_evaluate(TASK, models, sites)
    found["local"] = _dice(table[name][name] for name in sites)
    found["local, at the other sites"] = _dice(
        table[name][other] for name in sites for other in sites if other != name
    )
    found["pooled"] = _dice(table["pooled"].values())
    return found


def paired(by_seed: list[Found]) -> dict[str, dict[str, Any]]:
    """Return figures by strategy with the paired difference to FedAvg."""
    return {
        name: {
            "dice": [one[name] for one in by_seed],
            "beside_fedavg": interval([one[name] - one["fedavg"] for one in by_seed]),
        }
        for name in by_seed[0]
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a section of a page."""
    parameters = "; ".join(
        f"`{name}` {key} {value:g}" for name, values in PARAMETERS.items() for key, value in values.items()
    )
    held_out = figures["volumes"] // SITES - TRAIN
    lines = [
        _HEAD.format(
            **figures, train=TRAIN, held_out=held_out, steps=TASK.local.local_steps, parameters=parameters
        )
    ]
    for data, table in figures["sets"].items():
        lines += [f"### {data.capitalize()}", "", _ABOUT[data], ""]
        lines += ["| strategy | Dice | beside `fedavg` | |", "| - " * 4 + "|"]
        lines += [*(_row(name, row) for name, row in table.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def with_section(page: str, section: str) -> str:
    """Return a page with this section in the place of the one of the same title, or at its end."""
    title = section.split("\n", 1)[0]
    kept = [part for part in re.split(r"(?m)^(?=## )", page) if part.strip()]
    places = [number for number, part in enumerate(kept) if part.split("\n", 1)[0] == title]
    parts = [*kept[: places[0]], section, *kept[places[0] + 1 :]] if places else [*kept, section]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _dice(metrics: Iterable[AnyMetrics]) -> float:
    return mean(one.headline.estimate for one in metrics if one.headline is not None)


def _row(name: str, row: Mapping[str, Any]) -> str:
    beside = row["beside_fedavg"]
    difference, verdict = told(beside)
    if name == "fedavg":
        difference = verdict = ""
    return f"| {name} | {mean(row['dice']):.3f} | {difference} | {verdict} |"


_HEAD: Final = """## Hippocampus

Anterior and posterior hippocampus in {volumes} real MR volumes of one hospital (Medical Segmentation
Decathlon, task 4), written as DICOM series with DICOM SEG masks and read as a site reads them. **The four
sites are a synthetic split**: for each seed the volumes are dealt out anew, {train} to train and {held_out}
held out at each site. Means over {seeds} seeds; Dice of both segments at 2 mm on each site's own held-out
volumes, of the model that the site would use. Differences are paired by seed, with 95 % intervals (Student's
t), one comparison at a time. Volumes come back under other seeds, so seeds are not quite independent.

{rounds} rounds of {steps} steps; a U-Net of three levels (8, 16, 32 features) with batch normalisation.
`local` trains each site alone and `pooled` all volumes in one place, with as many steps. Parameters other
than the defaults, none of them tuned: {parameters}. The learning rate is the better of two tried before, on
training alone at 1.5 mm, with volumes that are in this set.

```sh
python -m tests.benchmarks.bench_segmentation docs/results.md  # {minutes} minutes, a loaded machine
cloister bench segmentation --json figures.json                # the same figures, of every seed, as JSON
```
"""
_ABOUT: Final = {
    "one scanner": "The volumes as they are: sites differ by chance alone.",
    "four machines": "The same, but each site's machine shows them otherwise, after preprocessing: the\n"
    "second inverts, the third is flat and bright, the fourth steep and dark.",
}


if __name__ == "__main__":
    found = run()
    page = Path(sys.argv[1])
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    page.write_text(with_section(before, markdown(found)), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
