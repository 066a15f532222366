from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from inference.preprocessing import PreprocessingSpec
from trainer.errors import TaskError
from trainer.task import Finding, LocalSpec, NetworkSpec, TaskSpec, read_task

if TYPE_CHECKING:
    from pathlib import Path


def task(**changes: Any) -> TaskSpec:
    values: dict[str, Any] = {
        "name": "lesion",
        "label": "lesion",
        "modalities": ("DX", "CR"),
        "preprocessing": PreprocessingSpec(rows=64, columns=64),
        "finding": Finding("52988006", "SCT", "Lesion"),
        **changes,
    }
    return TaskSpec(**values)


def test_a_task_survives_json_and_keeps_its_hash() -> None:
    before = task(network=NetworkSpec("resnet", {"groups": 2}), local=LocalSpec(local_steps=5), seed=3)
    after = TaskSpec.from_json(json.loads(json.dumps(before.to_json())))
    assert (after, after.sha256) == (before, before.sha256)
    assert task(seed=1).sha256 != task(seed=2).sha256


def test_optional_parts_may_be_left_out() -> None:
    content = task().to_json()
    for name in ("network", "local", "seed", "threshold", "validation_fraction"):
        del content[name]
    assert TaskSpec.from_json(content) == task()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"label": ""}, "label"),
        ({"modalities": ()}, "modalities"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"threshold": 2}, "threshold"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"finding": Finding("c" * 17, "SCT", "Lesion")}, "finding"),
        ({"local": LocalSpec(optimizer="lbfgs")}, "optimizer"),
        ({"local": LocalSpec(learning_rate=float("nan"))}, "learning_rate"),
        ({"local": LocalSpec(batch_size=0)}, "batch_size"),
        ({"local": LocalSpec(local_steps=10**9)}, "local_steps"),
        ({"local": LocalSpec(fedprox_mu=-1)}, "fedprox_mu"),
        ({"local": LocalSpec(shift_fraction=0.9)}, "shift_fraction"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TaskError, match=field):
        task(**changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("label"),
        lambda c: c.update(unknown=1),
        lambda c: c.update(local={"steps": 1}),
        lambda c: c.update(local=3),
        lambda c: c.update(finding=[]),
        lambda c: c.update(modalities=7),
        lambda c: c.update(modalities="DX"),
        lambda c: c.update(preprocessing={"rows": 1}),
        lambda c: c.update(preprocessing=None),
        lambda c: c.update(network={"name": 3}),
        lambda c: c.update(network={"parameters": []}),
        lambda c: c.update(seed="1"),
    ],
)
def test_wrong_json_is_refused(change: Any) -> None:
    content = task().to_json()
    change(content)
    with pytest.raises(TaskError):
        TaskSpec.from_json(content)


def test_a_task_file_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task().to_json()))
    assert read_task(path) == task()
    for content in ("[", "[]", "1", "{}"):
        path.write_text(content)
        with pytest.raises(TaskError):
            read_task(path)
    with pytest.raises(TaskError):
        read_task(tmp_path / "none.json")


def test_numeric_modules_import_no_torch() -> None:
    modules = ("task", "labels", "metrics", "weights_io", "strategies", "datasets")
    imports = "; ".join(f"import trainer.{name}" for name in modules)
    code = f"{imports}; import sys; sys.exit(bool({{'torch', 'monai', 'nvflare'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = (
        "import sys; import trainer; sys.exit(any(m.startswith(('trainer.', 'numpy')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
