from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.trainer.samples import drawn_dataset, small_task
from trainer.compression import Compression
from trainer.encryption import EncryptionError
from trainer.simulation import simulate
from trainer.strategies import STRATEGIES
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from trainer.datasets import Dataset

TASK = small_task()


def sites() -> dict[str, Dataset]:
    return {"north": drawn_dataset(1, TASK), "south": drawn_dataset(2, TASK, train=12)}


@pytest.mark.parametrize("compression", [None, Compression("turns", {"count": 3})])
def test_encrypted_rounds_come_to_the_same_model(compression: Compression | None) -> None:
    """Within the scheme's precision, which training on it then magnifies."""
    plain = simulate(TASK, sites(), rounds=3, seed=4, compression=compression)
    sealed = simulate(TASK, sites(), rounds=3, seed=4, compression=compression, encrypted=True)

    for name, array in plain.weights.items():
        assert sealed.weights[name].dtype == array.dtype
        np.testing.assert_allclose(sealed.weights[name], array, atol=1e-3)
    for record in sealed.rounds:
        for site in record.sites.values():
            assert site.anomaly_score is None
            assert site.update_bytes > 200_000
    assert sealed.rounds[0].sites["north"].model_bytes < sealed.rounds[1].sites["north"].model_bytes


@pytest.mark.parametrize("name", [name for name, one in STRATEGIES.items() if not isinstance(one, FedAvg)])
def test_what_looks_into_updates_is_refused_before_anything_is_trained(name: str) -> None:
    with pytest.raises(EncryptionError, match=name):
        simulate(TASK, sites(), rounds=1, strategy=name, encrypted=True)
