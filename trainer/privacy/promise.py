"""What a plan promises about privacy, as data: mechanism, parameters, and what a run may cost at a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from trainer.errors import TrainerError
from trainer.privacy.accountant import Release, epsilon

if TYPE_CHECKING:
    from trainer.task import TaskSpec

DP_SGD: Final = "dp-sgd"
UPDATE_GAUSSIAN: Final = "update-gaussian"
SVT: Final = "svt"
MECHANISMS: Final = (DP_SGD, UPDATE_GAUSSIAN, SVT)
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "clip_norm": (1e-6, 1e6),
    "noise_multiplier": (0.05, 1e4),
    "delta": (1e-12, 0.01),
    "epsilon": (1e-3, 1e3),
    "sampling_rate": (1e-6, 1.0),
    "share": (1e-6, 1.0),
}
# Whose sites train the whole network and send nothing but the difference to it.
_WITH_DP_SGD: Final = frozenset(
    {
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "median",
        "trimmed-mean",
        "krum",
        "multi-krum",
        "cyclic",
        "random-transfer",
        "swarm",
        "braintorrent",
    }
)


class PrivacyError(TrainerError):
    """A promise that no run can keep."""


@dataclass(frozen=True)
class Promise:
    """How every update of a run is protected.

    Parameters
    ----------
    mechanism : str
        ``dp-sgd``: each step's gradients are clipped by subject and noised. ``update-gaussian``: the whole
        update is clipped and noised once. ``svt``: few numbers of the update leave, noised
        (:mod:`trainer.privacy.sparse`).
    clip_norm : float
        Largest L2 norm: of one subject's gradient, or of the update. For ``svt`` the largest number.
    noise_multiplier : float
        Standard deviation of the noise over ``clip_norm``. For ``svt`` one over a round's pure epsilon, which
        costs as much as Gaussian noise of that multiplier does.
    epsilon, delta : float
        What the whole run may cost at one site.
    sampling_rate : float
        For ``dp-sgd``: chance of each subject to be in one step. 1 for the others.
    share : float
        For ``svt``: of the numbers of an update that may leave. 1 for the others.
    """

    mechanism: str
    clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float
    sampling_rate: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check all; raises PrivacyError."""
        if self.mechanism not in MECHANISMS:
            raise PrivacyError(f"mechanism: expected {', '.join(MECHANISMS)}")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise PrivacyError(f"{name}: expected a number from {low:g} to {high:g}")
            object.__setattr__(self, name, float(value))
        if self.mechanism != DP_SGD and self.sampling_rate != 1:
            raise PrivacyError(f"sampling_rate: expected none for {self.mechanism}")
        if self.mechanism != SVT and self.share != 1:
            raise PrivacyError(f"share: expected none for {self.mechanism}")

    def check_fits(self, task: TaskSpec, strategy: str) -> None:
        """Raise PrivacyError where the mechanism cannot protect what a site sends."""
        if task.network.parameters.get("norm") == "batch":
            raise PrivacyError("batch normalisation mixes subjects; expected network.parameters.norm: group")
        if strategy == SVT and self.mechanism != SVT:
            raise PrivacyError(f"strategy {SVT}: expected mechanism {SVT}")
        if self.mechanism == DP_SGD and strategy not in _WITH_DP_SGD:
            raise PrivacyError(f"{DP_SGD} does not go with {strategy}; expected {UPDATE_GAUSSIAN}, or fedavg")

    def round_cost(self, task: TaskSpec) -> Release:
        """Return what one round releases about a subject.

        ``dp-sgd``: a sum over a Poisson sample of subjects in each step, which one subject moves by at most
        ``clip_norm``. ``update-gaussian``: any two data sets of a site give clipped updates at most twice
        ``clip_norm`` apart, so the noise counts half; this covers the exchange of all its subjects. ``svt``:
        pure epsilon for the exchange of all its subjects, which is epsilon squared over two of concentrated
        privacy (Bun and Steinke 2016, proposition 1.4), as Gaussian noise of multiplier one over epsilon is.
        """
        if self.mechanism == DP_SGD:
            return Release(self.noise_multiplier, self.sampling_rate, task.local.local_steps)
        if self.mechanism == SVT:
            return Release(self.noise_multiplier, 1.0, 1)
        return Release(self.noise_multiplier / 2, 1.0, 1)

    def run_epsilon(self, task: TaskSpec, rounds: int) -> float:
        """Return what that many rounds cost, at the promise's own delta."""
        return epsilon([self.round_cost(task)] * rounds, self.delta)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back."""
        content = asdict(self)
        if self.mechanism != DP_SGD:
            del content["sampling_rate"]
        if self.mechanism != SVT:
            del content["share"]
        return content

    @classmethod
    def from_json(cls, content: object) -> Promise:
        """Read plain JSON values; raises PrivacyError."""
        needed = {"mechanism", "clip_norm", "noise_multiplier", "epsilon", "delta"}
        if not isinstance(content, Mapping):
            raise PrivacyError("expected an object")
        if content.get("mechanism") == DP_SGD:
            needed |= {"sampling_rate"}
        if content.get("mechanism") == SVT:
            needed |= {"share"}
        if set(content) != needed:
            raise PrivacyError(f"expected exactly {', '.join(sorted(needed))}")
        return cls(**content)


def check_promised(strategy: str, promise: Promise | None) -> None:
    """Raise PrivacyError where a strategy is nothing without a promise, and there is none."""
    if strategy == SVT and promise is None:
        raise PrivacyError(f"strategy {SVT} needs a promise of mechanism {SVT}")
