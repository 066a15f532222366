"""Generated anomalies in slices of four machines, FedDis beside FedAvg: ``cloister bench anomaly``.

``python -m tests.benchmarks.bench_anomaly docs/results.md`` writes the section Anomalies of that page and
leaves the others.
"""

from __future__ import annotations

import json
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
from tests.benchmarks.bench_segmentation import MACHINES, SITES, with_section
from tests.benchmarks.bench_strategies import interval, told
from tests.trainer.healthy import healthy_task, with_anomalies, write_healthy, write_sick
from tests.trainer.masked import hippocampus, hippocampus_names
from trainer.anomaly.building import build
from trainer.anomaly.measures import AnomalyMetrics, measure, pictured
from trainer.baselines import train_local
from trainer.datasets import Dataset, Samples
from trainer.local_round import evaluate, use_threads
from trainer.segmentation.folders import read_mask_folder
from trainer.simulation import bytes_by_site, simulate
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

SEEDS: Final = 6
ROUNDS: Final = 30
NAMES: Final = ("fedavg", "feddis")
# Of a site's 32 patients: to train on, to take the threshold from; the others have anomalies.
TRAIN: Final = 18
HEALTHY: Final = 6
HEIGHTS: Final = (0.35, 0.45, 0.55, 0.65)  # of the slices of a volume, as shares of its extent
TASK: Final = healthy_task(
    preprocessing=PreprocessingSpec(rows=32, columns=32),
    network=NetworkSpec("split-autoencoder", {"features": [8, 16, 32, 32], "code": 4}),
    local=LocalSpec(batch_size=16, local_steps=25, learning_rate=5e-3, weight_decay=0.0, shift_fraction=0.05),
)
Found = dict[str, dict[str, float]]


def run(seeds: int = SEEDS, rounds: int = ROUNDS, workers: int = 2) -> dict[str, Any]:
    """Measure all; ``ways[name]`` has mean Dice and average precision over sites, by seed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        prepared = Path(name) / "slices.npz"
        volumes = prepare(prepared, Path(name) / "dicom")
        orders = [(str(prepared), seed, rounds) for seed in range(seeds)]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            by_seed = list(pool.map(measured, orders))
    minutes = round((time.monotonic() - started) / 60, 1)
    return {
        "seeds": seeds,
        "rounds": rounds,
        "volumes": volumes,
        "minutes": minutes,
        "workers": workers,
        "ways": paired(by_seed),
    }


def prepare(target: Path, folder: Path) -> int:
    """Write slices of every volume as they are and again with anomalies and masks; keep the arrays."""
    generator = np.random.default_rng(0)
    for name in hippocampus_names():
        whole, owner = hippocampus(name).image, name.split(".", 1)[0]
        chosen = whole[[int(len(whole) * height) for height in HEIGHTS]]
        write_healthy(folder, owner, chosen)
        write_sick(folder, f"{owner}-sick", with_anomalies(chosen, generator))
    site = build(read_mask_folder(folder, TASK).stored, TASK, None)
    both = Samples.join([site.train, site.validation])
    owners = [owner.strip() for owner in both.pseudonyms]
    # UIDs are new each time, and so is the order of cases.
    order = sorted(range(len(both)), key=lambda case: (owners[case], both.x[case].tobytes()))
    np.savez(target, x=both.x[order], y=both.y[order], owners=np.array(owners)[order])
    return len(set(owners)) // 2


def sites_of(path: Path, seed: int) -> dict[str, Dataset]:
    """Deal the patients out to four sites of one machine each; nobody is held out healthy and sick."""
    with np.load(path, allow_pickle=False) as content:
        x, y, owners = content["x"], content["y"], content["owners"]
    names = np.array(sorted({owner for owner in owners.tolist() if not owner.endswith("-sick")}))
    dealt = names[np.random.default_rng(seed).permutation(len(names))]
    size = len(dealt) // SITES
    sites = {}
    for number, (gain, offset) in enumerate(MACHINES["four machines"]):
        here = dealt[number * size : (number + 1) * size]
        shown = (x * np.float32(gain) + np.float32(offset)).astype(np.float32)
        parts = [
            _of(shown, y, owners, chosen)
            for chosen in (
                here[:TRAIN],
                here[TRAIN : TRAIN + HEALTHY],
                [f"{name}-sick" for name in here[TRAIN + HEALTHY :]],
            )
        ]
        sites[f"site-{number}"] = Dataset(parts[0], Samples.join(parts[1:]))
    return sites


def measured(order: tuple[str, int, int]) -> Found:
    """Run both strategies and what they are compared with, from one seed."""
    path, seed, rounds = order
    use_threads(1)
    sites = sites_of(Path(path), seed)
    found = {}
    for name in NAMES:
        result = simulate(TASK, sites, rounds=rounds, strategy=name, seed=seed)
        sent = sum(one["sent"] for one in bytes_by_site(result.rounds).values())
        found[name] = {**_figures(result.final.values()), "kib": sent / rounds / SITES / 1024}
    alone = {name: train_local(TASK, site, rounds=rounds, seed=seed) for name, site in sites.items()}
    found["local"] = _figures(evaluate(TASK, alone[name], site) for name, site in sites.items())
    found["mean picture"] = _figures(mean_picture(site) for site in sites.values())
    return found


def mean_picture(site: Dataset) -> AnomalyMetrics:
    """Measure what no network is needed for: residuals to the mean of the site's training pictures."""
    held_out = site.validation
    strayed = np.abs(held_out.x - site.train.x.mean(axis=0))[:, 0]
    share = 0.0 if TASK.anomaly is None else TASK.anomaly.healthy_share
    inside = pictured(held_out.x, TASK.preprocessing.black)
    return measure(held_out.y, strayed, share, held_out.pseudonyms, inside)


def paired(by_seed: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """Return figures by way with the paired differences to FedAvg."""
    return {
        name: {
            **{figure: [one[name][figure] for one in by_seed] for figure in ("dice", "precision")},
            **{
                f"{figure}_beside": interval([one[name][figure] - one["fedavg"][figure] for one in by_seed])
                for figure in ("dice", "precision")
            },
            "kib_per_round_and_site": by_seed[0][name].get("kib"),
        }
        for name in by_seed[0]
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a section of a page."""
    spec = TASK.anomaly
    lines = [
        _HEAD.format(
            **{name: figures[name] for name in ("seeds", "rounds", "volumes", "minutes", "workers")},
            train=TRAIN,
            healthy=HEALTHY,
            sick=figures["volumes"] // SITES - TRAIN - HEALTHY,
            steps=TASK.local.local_steps,
            share=100 * spec.healthy_share if spec else 0,
        ),
        "| way | Dice | beside `fedavg` | | area | beside `fedavg` | | KiB a round and site |",
        "| - " * 8 + "|",
        *(_row(name, row) for name, row in figures["ways"].items()),
    ]
    return "\n".join(lines) + "\n"


def _of(
    x: NDArray[np.float32], y: NDArray[np.uint8], owners: NDArray[np.str_], chosen: Iterable[str]
) -> Samples:
    at = np.flatnonzero(np.isin(owners, list(chosen)))
    return Samples(x[at], y[at], tuple(owners[at].tolist()))


def _figures(metrics: Iterable[Any]) -> dict[str, float]:
    each = list(metrics)
    return {
        "dice": mean(one.dice.estimate for one in each),
        "precision": mean(one.average_precision.estimate for one in each),
    }


def _row(name: str, row: Mapping[str, Any]) -> str:
    cells = [name]
    for figure in ("dice", "precision"):
        beside = row[f"{figure}_beside"]
        difference, verdict = told(beside)
        cells += [f"{mean(row[figure]):.3f}", *(("", "") if name == "fedavg" else (difference, verdict))]
    sent = row["kib_per_round_and_site"]
    return "| " + " | ".join([*cells, "" if sent is None else f"{sent:.0f}"]) + " |"


_HEAD: Final = """## Anomalies

An autoencoder learns healthy pictures and is measured on **generated anomalies**: four slices of each of
{volumes} real hippocampus volumes (as above) are healthy as they are; a copy of each has a bright or dark
blob with a soft edge put into every slice, with the mask of it as DICOM SEG. No pathology of a patient is in
this data. Both are written as DICOM and read as a site reads them. For each seed the patients are dealt out
anew to four sites: {train} to train on, {healthy} healthy ones held out, {sick} with anomalies. Each site's
machine shows its pictures otherwise, as under "Four machines" above.

The threshold of the residual is each site's own: {share:g} % of the pixels of its healthy held-out
pictures lie at or below. Dice is that of what lies above, on the pictures with anomalies; "area" is that
under precision over recall of their pixels, without any threshold. Both are means over patients, then over
sites, then over {seeds} seeds, of the model that the site would use. Differences are paired by seed, with
95 % intervals (Student's t), one comparison at a time. `local` trains each site alone with as many steps;
`mean picture` needs no network: the residual is that to the mean of the site's training pictures. {rounds}
rounds of {steps} steps; no weight of a loss was tuned. Size of the network and learning rate were chosen on
one deal of pooled data of one machine, volumes of which are in this set.

```sh
python -m tests.benchmarks.bench_anomaly docs/results.md  # {minutes} minutes, {workers} cores
cloister bench anomaly --json figures.json                # the same figures, of every seed, as JSON
```
"""


if __name__ == "__main__":
    found = run()
    page = Path(sys.argv[1])
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    page.write_text(with_section(before, markdown(found)), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
