"""The drawn studies teach what the demonstration claims: together hospitals learn more than alone.

With other seeds than the demonstration's own, which shows it in ``make test`` (tests/e2e/test_demo.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.demo import plan as plans
from appliance.demo.drawing import draw
from appliance.demo.hospitals import HOSPITALS
from appliance.demo.stages_federation import MARGIN, margins, mean
from inference.preprocessing import prepare_pixels
from tests.further import FURTHER
from trainer.baselines import cross_evaluate, train_local
from trainer.datasets import Dataset, Samples
from trainer.local_round import use_threads
from trainer.simulation import simulate

if TYPE_CHECKING:
    from trainer.task import TaskSpec


def _datasets(task: TaskSpec, seed: int) -> dict[str, Dataset]:
    datasets = {}
    for index, hospital in enumerate(HOSPITALS):
        rng = np.random.default_rng([seed, index])
        y = (np.arange(hospital.studies) < round(hospital.studies * hospital.prevalence)).astype(np.uint8)
        rng.shuffle(y)
        inverted = hospital.look.photometric == "MONOCHROME1"
        x = np.stack(
            [
                prepare_pixels(
                    draw(rng, hospital.look, lesion=bool(value)).pixels, task.preprocessing, inverted=inverted
                )
                for value in y
            ]
        )
        held_out = rng.random(hospital.studies) < task.validation_fraction
        datasets[hospital.site] = Dataset(
            Samples(x[~held_out], y[~held_out]), Samples(x[held_out], y[held_out])
        )
    return datasets


@pytest.mark.slow
@pytest.mark.timeout(900)
@FURTHER
@pytest.mark.parametrize("seed", range(5))
def test_the_global_model_beats_each_local_model_at_the_other_hospitals(seed: int) -> None:
    use_threads(1)
    task = plans.task(plans.Wanted("lung-lesion", ("DX",), seed, 5))
    datasets = _datasets(task, seed)
    models = {"global": simulate(task, datasets, rounds=plans.ROUNDS, seed=seed).weights}
    for site, dataset in datasets.items():
        models[site] = train_local(task, dataset, rounds=plans.ROUNDS, seed=seed)
    table = cross_evaluate(task, models, datasets)
    auc = {
        model: {site: None if found.auc is None else found.auc.estimate for site, found in row.items()}
        for model, row in table.items()
    }
    overall = mean(auc["global"])
    assert overall is not None
    assert 0.85 < overall < 0.999, auc
    found = margins(auc, list(datasets))
    assert all(margin is not None and margin >= MARGIN for margin in found.values()), (found, auc)
