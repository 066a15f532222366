"""Networks by name, and the way between a network and plain arrays.

They normalise by group unless the task says ``norm: batch``: batch normalisation keeps running statistics of
a site's own data, which average badly, and should not leave the building (strategy ``fedbn`` keeps them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from trainer.anomaly.network import SplitAutoencoder
from trainer.architectures import DenseNet, Linear, Norm, ResNet, UNet
from trainer.errors import TaskError, UnfitModelError
from trainer.strategies import streams
from trainer.strategies.variation import STYLE
from trainer.wrapped import GATE, PRIVATE, Harmonised, Mixture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.anomaly.spec import AnomalySpec
    from trainer.task import NetworkSpec, TaskSpec

_MAX_FEATURES: Final = 1024
_NORMS: Final = ("group", "batch")
_FILLING: Final = frozenset({"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "fill_", "zero_"})


@dataclass(frozen=True)
class Form:
    """What goes into a network and comes out: float32 (n, 1, *size) to logits (n, 1), or of every voxel.

    With ``anomaly`` what comes out is what went in, as it would be without.
    """

    size: tuple[int, ...] = ()
    classes: int = 0  # of every voxel; 0: one logit of the whole
    anomaly: AnomalySpec | None = None

    @classmethod
    def of(cls, task: TaskSpec) -> Form:
        """Return the form that a task asks for."""
        return cls(task.size, task.segmentation.classes if task.segmentation else 0, task.anomaly)

    @property
    def networks(self) -> frozenset[str]:
        """Names of the networks that have it."""
        if self.anomaly is not None:
            return RECONSTRUCTING
        return SEGMENTING if self.classes else frozenset(NETWORKS) - SEGMENTING - RECONSTRUCTING


def build(spec: NetworkSpec, form: Form = Form()) -> torch.nn.Module:
    """Return an untrained network.

    ``resnet``: basic blocks in four stages; ``features`` (four numbers), ``blocks`` (four), ``groups``,
    ``max_pool``. ``densenet``: ``features``, ``growth``, ``blocks`` (a list), ``groups``.
    ``linear``: logistic regression on the pixels; no parameters, nothing is normalised.
    ``unet``, for segmentations alone: halves between ``features``; ``groups``.
    All these but ``linear``: ``norm``, ``group`` or ``batch``.
    ``split-autoencoder``, for anomalies alone: of :mod:`trainer.anomaly.network`, halves at each of its
    ``features``; ``code`` (channels of each code), ``groups``.

    Raises
    ------
    TaskError
        For an unknown network or parameter, one that is out of range, or a network that does not make what
        the task asks for.
    """
    if spec.name not in form.networks:
        raise TaskError(
            f"network.name: expected one of {', '.join(sorted(form.networks))} for this kind of task"
        )
    defaults, make = NETWORKS[spec.name]
    if set(spec.parameters) - set(defaults):
        but = f" but {', '.join(defaults)}" if defaults else f" for {spec.name}"
        raise TaskError(f"network.parameters: expected none{but}")
    values = {**defaults, **spec.parameters}
    for name, value in values.items():
        _check(name, value, defaults[name])
    _check_widths(values)
    return make(values, form)


def initial_weights(task: TaskSpec, seed: int | None = None) -> dict[str, NDArray[Any]]:
    """Return the untrained global model; the same seed (``task.seed`` by default) gives the same arrays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed if seed is None else seed)
        return memory_of(build(task.network, Form.of(task)))


def weights_of(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of a network's parameters and buffers."""
    return {name: np.array(array) for name, array in memory_of(network).items()}


def memory_of(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return a network's parameters and buffers where they lie: for one that is not used any further."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def with_weights(task: TaskSpec, weights: Mapping[str, NDArray[Any]]) -> torch.nn.Module:
    """Return the task's network with these weights, inside what its names say (:mod:`trainer.wrapped`).

    Raises
    ------
    UnfitModelError
        If names or shapes are not the network's.
    """
    if task.anomaly is not None and any(":" in name for name in weights):
        raise UnfitModelError("an anomaly task's network stands alone; expected no arrays of a strategy")
    if STYLE in weights:
        inner = {name: array for name, array in weights.items() if name != STYLE}
        return Harmonised(with_weights(task, inner), torch.from_numpy(np.array(weights[STYLE])))
    if any(name.startswith(GATE) for name in weights):
        return _mixture(task, weights)
    return _loaded(_outline(task), weights)


def parts_of(weights: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays under a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def head_names(task: TaskSpec) -> frozenset[str]:
    """Return the names of the network's last layer, which makes the logits."""
    makers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)  # noqa: SLF001 - of any dimension
    modules = build(task.network, Form.of(task)).named_modules()
    last = [name for name, module in modules if isinstance(module, makers)][-1]
    return frozenset(f"{last}.{part}" for part in ("weight", "bias"))


def _mixture(task: TaskSpec, weights: Mapping[str, NDArray[Any]]) -> torch.nn.Module:
    private, gate = parts_of(weights, PRIVATE), parts_of(weights, GATE)
    shared = {name: array for name, array in weights.items() if not name.startswith((PRIVATE, GATE))}
    network = Mixture(_loaded(_outline(task), shared), _loaded(_outline(task), private), len(task.size))
    _loaded(network.gate, gate)
    return network


def _outline(task: TaskSpec) -> torch.nn.Module:
    """Return the task's network for weights to be put in: its own mean nothing."""
    with _Undrawn():
        return build(task.network, Form.of(task))


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of first weights, which takes longer than a round's training step.

    PyTorch's device for such outlines loads its compiler: see :mod:`trainer.steppers`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return a tensor that was to be filled as it is."""
        del types
        if getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _loaded(network: torch.nn.Module, weights: Mapping[str, NDArray[Any]]) -> torch.nn.Module:
    """Put weights in the place of the network's; each array is copied once, into the network's dtype."""
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    copy = None if streams.makes_anew(weights) else True
    state = {
        name: torch.from_numpy(np.array(array, copy=copy)).to(dtypes.get(name, torch.float32))
        for name, array in weights.items()
    }
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UnfitModelError("these weights do not fit the task's network: other names or shapes") from error
    return network


def _resnet(values: Mapping[str, Any], form: Form) -> torch.nn.Module:
    del form
    return ResNet(values["features"], values["blocks"], _norm(values, 2), max_pool=values["max_pool"])


def _densenet(values: Mapping[str, Any], form: Form) -> torch.nn.Module:
    del form
    return DenseNet(values["features"], values["growth"], values["blocks"], _norm(values, 2))


def _unet(values: Mapping[str, Any], form: Form) -> torch.nn.Module:
    halvings = len(values["features"]) - 1
    if halvings < 1 or any(extent % 2**halvings for extent in form.size):
        raise TaskError(
            "network.parameters.features: expected two or more, and an input that can be halved between them"
        )
    dimensions = len(form.size)
    return UNet(dimensions, values["features"], form.classes, _norm(values, dimensions))


def _split_autoencoder(values: Mapping[str, Any], form: Form) -> torch.nn.Module:
    halvings = len(values["features"])
    if form.anomaly is None or any(extent % 2**halvings for extent in form.size):
        raise TaskError("network.parameters.features: expected an input that can be halved at each of them")
    return SplitAutoencoder(values["features"], values["code"], values["groups"], form.anomaly)


def _linear(values: Mapping[str, Any], form: Form) -> torch.nn.Module:
    del values
    rows, columns = form.size
    return Linear(rows, columns)


def _norm(values: Mapping[str, Any], dimensions: int) -> Norm:
    if values["norm"] == "group":
        return partial(torch.nn.GroupNorm, values["groups"])
    return torch.nn.BatchNorm2d if dimensions == 2 else torch.nn.BatchNorm3d


def _check(name: str, value: object, default: object) -> None:
    if isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, str):
        good = value in _NORMS
    elif isinstance(default, int):
        good = _is_count(value)
    else:
        lengths = {4} if isinstance(default, tuple) else {1, 2, 3, 4, 5}
        good = isinstance(value, list | tuple) and len(value) in lengths and all(map(_is_count, value))
    if not good:
        raise TaskError(f"network.parameters.{name}: expected something like {default}")


def _check_widths(values: Mapping[str, Any]) -> None:
    groups = values.get("groups", 1)
    widths = [*np.atleast_1d(values.get("features", groups)).tolist(), values.get("growth", groups)]
    if any(width % groups for width in widths):
        raise TaskError("network.parameters: every number of features must be a multiple of groups")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_FEATURES


_Make = Callable[[Mapping[str, Any], Form], torch.nn.Module]
NETWORKS: Final[Mapping[str, tuple[dict[str, Any], _Make]]] = {
    "resnet": (
        {
            "features": (8, 16, 32, 64),
            "blocks": (1, 1, 1, 1),
            "groups": 4,
            "max_pool": False,
            "norm": "group",
        },
        _resnet,
    ),
    "densenet": ({"features": 16, "growth": 8, "blocks": [2, 2, 2], "groups": 4, "norm": "group"}, _densenet),
    "linear": ({}, _linear),
    "unet": ({"features": [8, 16, 32], "groups": 4, "norm": "group"}, _unet),
    "split-autoencoder": ({"features": [8, 16, 32, 32], "code": 4, "groups": 4}, _split_autoencoder),
}
SEGMENTING: Final = frozenset({"unet"})
RECONSTRUCTING: Final = frozenset({"split-autoencoder"})
