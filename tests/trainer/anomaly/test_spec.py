from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer.healthy import LESION, healthy_task
from tests.trainer.masked import SEGMENTS, small_masks_task
from tests.trainer.samples import small_task
from trainer.anomaly.spec import AnomalySpec
from trainer.errors import TaskError
from trainer.networks import initial_weights
from trainer.segmentation.spec import Segment
from trainer.task import ANOMALY, NetworkSpec, TaskSpec

TASK = healthy_task()


def test_an_anomaly_task_survives_json_and_keeps_its_hash() -> None:
    task = healthy_task(anomaly=AnomalySpec(LESION, healthy_share=0.9, largest_gamma=3))
    after = TaskSpec.from_json(json.loads(json.dumps(task.to_json())))
    assert (after, after.sha256, after.kind) == (task, task.sha256, ANOMALY)
    assert task.sha256 != TASK.sha256


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"segments": ()}, "segments"),
        ({"segments": (*LESION, *LESION)}, "segments"),
        ({"segments": (Segment("c" * 17, "SCT", "x"),)}, "segments"),
        ({"healthy_share": 1.0}, "healthy_share"),
        ({"healthy_share": True}, "healthy_share"),
        ({"shape_weight": -1}, "shape_weight"),
        ({"orthogonality_weight": float("nan")}, "orthogonality_weight"),
        ({"largest_gamma": 1.0}, "largest_gamma"),
        ({"largest_gamma": "2"}, "largest_gamma"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TaskError, match=field):
        AnomalySpec(**{"segments": LESION, **changes})


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(kind="none"),
        lambda c: c.update(kind=["anomaly"]),
        lambda c: c.update(threshold=0.5),
        lambda c: c.update(finding={"code": "1", "scheme": "S", "meaning": "m"}),
        lambda c: c.update(segmentation={}),
        lambda c: c.update(modalities=["MR", "SEG"]),
        lambda c: c.pop("anomaly"),
        lambda c: c.update(anomaly=[]),
        lambda c: c["anomaly"].update(segments=[{"code": ["x"], "scheme": "S", "meaning": "m"}]),
        lambda c: c["anomaly"].update(unknown=1),
    ],
)
def test_wrong_json_is_refused(change: Any) -> None:
    content = TASK.to_json()
    change(content)
    with pytest.raises(TaskError):
        TaskSpec.from_json(content)


def test_a_task_is_of_one_kind() -> None:
    for task in (small_task(), small_masks_task()):
        with pytest.raises(TaskError):
            replace(task, anomaly=AnomalySpec(SEGMENTS))
        with pytest.raises(TaskError, match="anomaly"):
            TaskSpec.from_json({**task.to_json(), "anomaly": AnomalySpec(SEGMENTS).to_json()})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet", {}),
        ("unet", {}),
        ("split-autoencoder", {"features": [4, 6]}),
        ("split-autoencoder", {"features": [4] * 5}),
        ("split-autoencoder", {"code": 0}),
        ("split-autoencoder", {"norm": "batch"}),
    ],
)
def test_a_network_that_does_not_fit_is_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="network"):
        initial_weights(healthy_task(network=NetworkSpec(name, parameters)))


def test_the_split_autoencoder_learns_nothing_else() -> None:
    with pytest.raises(TaskError, match="densenet, linear, resnet"):
        initial_weights(small_task(network=NetworkSpec("split-autoencoder", {})))
