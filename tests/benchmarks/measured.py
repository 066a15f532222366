"""One federation's run as it was measured, whoever's it was, and what the figures are held against."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.footprint import Footprint

MIB: Final = 2**20
COORDINATOR: Final = "coordinator"
# The goals of the federation's design.
MODELS_IN_MEMORY: Final = 2.5
MEMORY_MIB: Final = 400.0
GROWTH_MIB: Final = 8.0  # in 100 rounds, of one process: a twentieth of the smallest job process
TELLING_S: Final = 0.05
BY_SITES: Final = 1.1  # coordinator's memory with the most sites, to that with the fewest


@dataclass(frozen=True, eq=False)
class Measured:
    """A run.

    Parameters
    ----------
    ends : list of float
        When each round ended, in seconds since the epoch.
    training : list of float
        Its slowest site's training, in seconds.
    footprint : Footprint
        Of the rounds.
    last_step : Footprint, optional
        Of what sites do with the model after them.
    """

    ok: bool
    ends: list[float]
    training: list[float]
    footprint: Footprint
    last_step: Footprint | None = None

    @property
    def seconds(self) -> list[float]:
        """Lengths of all rounds but the first, from end to end: nothing between two rounds is left out."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]

    def figures(self) -> dict[str, Any]:
        """Return what is reported."""
        beyond = [whole - train for whole, train in zip(self.seconds, self.training[1:], strict=True)]
        computed = self.footprint.processor_s_per_round(self.ends)
        up, down = self.footprint.bytes_per_round(self.ends)
        return {
            "ok": self.ok,
            "rounds": len(self.ends),
            "seconds_per_round": round(statistics.median(self.seconds), 2),
            "seconds_per_round_beyond_training": round(statistics.median(beyond), 2),
            "processor_seconds_per_round": round(sum(computed.values()), 2),
            "processor_seconds_by_role": {
                role: round(seconds, 2) for role, seconds in sorted(computed.items()) if seconds >= TELLING_S
            },
            "mib_sent_per_round_and_site": round(up / MIB, 2),
            "mib_received_per_round_and_site": round(down / MIB, 2),
            "peak_mib_of_a_process": _rounded(self.footprint.peaks),
            "peak_mib_of_a_site": _of_a_site(self.footprint),
            "peak_mib_of_the_coordinator": round(self.footprint.together[COORDINATOR]),
            **({} if self.last_step is None else _of_the_last_step(self.last_step)),
        }

    def growth(self, warm_up: float) -> dict[str, Any]:
        """Return how much its processes grow in 100 rounds, by role, after a share to warm up."""
        first = int(len(self.ends) * warm_up)
        slopes = self.footprint.slopes(self.ends[first], self.ends[-1], len(self.ends) - 1 - first)
        return {
            "rounds": len(self.ends),
            "seconds_per_round": round(statistics.median(self.seconds), 2),
            "seconds_per_round_with_job_changes": round(statistics.fmean(self.seconds), 2),
            "mib_grown_in_100_rounds": slopes,
            "flat": all(slope <= GROWTH_MIB for slope in slopes.values()),
        }


def side_by_side(ours: Mapping[str, Any], engine: Mapping[str, Any], model_mib: float) -> dict[str, Any]:
    """Return both figures, their ratios, and whether the goals are met; an empty one was not measured."""
    found: dict[str, Any] = {"model_mib": round(model_mib, 1), "cloister": dict(ours), "engine": dict(engine)}
    if not ours or not engine:
        found["not_measured"] = "too little memory was free"
    if not ours:
        return found
    compared = [name for name, value in engine.items() if isinstance(value, float | int) and name in ours]
    ratios = {
        name: round(ours[name] / engine[name], 2)
        for name in compared
        if engine[name] and name not in {"ok", "rounds"}
    }
    allowed = MODELS_IN_MEMORY * model_mib + MEMORY_MIB
    found["site_process_allowed_mib"] = round(allowed)
    found["site_processes_above"] = _above(ours["peak_mib_of_a_process"], allowed)
    found["site_processes_above_in_the_last_step"] = _above(
        ours["peak_mib_of_a_process_in_the_last_step"], allowed
    )
    if engine:
        found["cloister_to_engine"] = ratios
        found["no_slower_than_the_engine"] = ours["seconds_per_round"] <= engine["seconds_per_round"]
    return found


def _of_the_last_step(footprint: Footprint) -> dict[str, Any]:
    return {
        "peak_mib_of_a_process_in_the_last_step": _rounded(footprint.peaks),
        "peak_mib_of_a_site_in_the_last_step": _of_a_site(footprint),
    }


def _of_a_site(footprint: Footprint) -> int:
    return round(max(size for place, size in footprint.together.items() if place != COORDINATOR))


def _rounded(peaks: Mapping[str, float]) -> dict[str, int]:
    return {role: round(size) for role, size in sorted(peaks.items())}


def _above(peaks: Mapping[str, float], allowed: float) -> list[str]:
    return sorted(role for role, size in peaks.items() if size > allowed and COORDINATOR not in role)
