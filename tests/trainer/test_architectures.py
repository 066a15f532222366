"""Our networks beside MONAI's: the same names, the same first weights of a seed, the same outputs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.unet import UNet

from tests.trainer.masked import pictures_task, small_masks_task
from trainer.networks import Form, build
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS, VOLUMES, PICTURES = Form(), Form.of(small_masks_task()), Form.of(pictures_task())
SIZES = {"resnet": (32, 40), "densenet": (64, 48)}


def resnet(norm: Any, **given: Any) -> torch.nn.Module:
    network: torch.nn.Module = ResNet(
        block="basic",
        layers=given.get("blocks", [1, 1, 1, 1]),
        block_inplanes=given.get("features", [8, 16, 32, 64]),
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=not given.get("max_pool", False),
        num_classes=1,
        norm=norm,
        bias_downsample=False,
    )
    return network


def densenet(norm: Any, **given: Any) -> torch.nn.Module:
    network: torch.nn.Module = DenseNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        init_features=given.get("features", 16),
        growth_rate=given.get("growth", 8),
        block_config=tuple(given.get("blocks", [2, 2, 2])),
        norm=norm,
    )
    return network


def unet(norm: Any, form: Form, **given: Any) -> torch.nn.Module:
    features = given.get("features", [8, 16, 32])
    network: torch.nn.Module = UNet(
        spatial_dims=len(form.size),
        in_channels=1,
        out_channels=form.classes,
        channels=features,
        strides=(2,) * (len(features) - 1),
        norm=norm,
    )
    return network


def reference(spec: NetworkSpec, form: Form) -> torch.nn.Module:
    given = dict(spec.parameters)
    groups = given.pop("groups", 4)
    norm = "batch" if given.pop("norm", "group") == "batch" else ("group", {"num_groups": groups})
    if spec.name == "unet":
        return unet(norm, form, **given)
    network = resnet(norm, **given) if spec.name == "resnet" else densenet(norm, **given)
    if norm != "batch":
        by_group(network, groups)
    return network


def by_group(module: torch.nn.Module, groups: int) -> None:
    """MONAI's ResNet normalises by batch in its stages whatever it is told."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torch.nn.GroupNorm(groups, child.num_features))
        else:
            by_group(child, groups)


def drawn(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(7)
    return make()


@pytest.mark.parametrize(
    ("spec", "form"),
    [
        (NetworkSpec("resnet"), LABELS),
        (NetworkSpec("resnet", {"norm": "batch"}), LABELS),
        (
            NetworkSpec("resnet", {"features": [8, 8, 16, 16], "blocks": [2, 1, 3, 1], "max_pool": True}),
            LABELS,
        ),
        (NetworkSpec("densenet"), LABELS),
        (NetworkSpec("densenet", {"features": 8, "growth": 4, "blocks": [1, 3], "norm": "batch"}), LABELS),
        (NetworkSpec("unet"), VOLUMES),
        (NetworkSpec("unet", {"features": [4, 8], "norm": "batch"}), VOLUMES),
        (NetworkSpec("unet", {"features": [8, 16, 32, 8]}), PICTURES),
        (NetworkSpec("unet", {"features": [4, 8], "norm": "batch"}), PICTURES),
    ],
)
def test_a_network_is_monais(spec: NetworkSpec, form: Form) -> None:
    ours, theirs = drawn(lambda: build(spec, form)), drawn(lambda: reference(spec, form))

    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    x = torch.randn(3, 1, *(form.size or SIZES[spec.name]))
    found, expected = ours(x), theirs(x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert torch.equal(one.grad, other.grad), name
    for name, tensor in theirs.state_dict().items():  # running statistics, too
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_training_loads_no_more_than_it_needs() -> None:
    """MONAI, and what it brings, cost every process that trains 90 MiB."""
    code = "import sys, trainer.local_round; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"monai", "scipy.signal", "torch._dynamo"}
