"""What every task does: open the zone once per process, claim the row, call one function."""

from __future__ import annotations

import functools
import os
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from appliance import broker, figures
from appliance.db.clinical import ClinicalJob
from appliance.db.research import ResearchJob, Round
from appliance.errors import ApplianceError
from appliance.node import ClinicalZone, ResearchZone, open_clinical, open_research
from appliance.work import candidates, claimed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.settings import Settings

CLINICAL_LEASE_S: Final = 300.0

# Kind of job -> (module, function of zone and claim).
CLINICAL_WORK: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "deidentify": ("appliance.release", "release_study"),
        "deliver": ("appliance.delivery", "deliver"),
        "erase": ("appliance.erasing", "erase"),
        "fetch": ("appliance.fetch_work", "fetch"),
        "infer": ("appliance.serving", "infer_study"),
        "report": ("appliance.commitment", "report"),
        "review": ("appliance.review.trials", "try_out"),
    }
)

_settings: list[Settings] = []


class NotConfiguredError(ApplianceError):
    """A task ran in a process that was given no settings."""


def configure(settings: Settings) -> None:
    """Keep the settings for the tasks of this process and the children it forks."""
    _settings[:] = [settings]


def run_job(job_id: str, queue: str) -> None:
    """Claim the most urgent clinical job of the queue, or the named one, and do it.

    A second delivery of a message finds other work, or nothing to do.
    """
    zone = _clinical(os.getpid())
    kinds = [kind for kind, (_, name) in broker.CLINICAL_KINDS.items() if name == queue]
    for candidate in candidates(zone.engine, ClinicalJob, kinds, job_id):
        with claimed(zone.engine, ClinicalJob, candidate, queue, CLINICAL_LEASE_S) as claim:
            if claim is not None:
                module, function = CLINICAL_WORK[claim.row.kind]
                getattr(import_module(module), function)(zone, claim)
        if claim is not None:
            figures.flush(figures.folder_of(zone.settings))
            return


def run_round(round_id: str, module: str, function: str) -> None:
    """Claim a round and hand it to ``module.function``; a second delivery finds nothing to do."""
    zone = _research(os.getpid())
    with claimed(zone.engine, Round, round_id, function, zone.settings.training.round_lease_s) as claim:
        if claim is not None:
            getattr(import_module(module), function)(zone, claim)


def run_research_job(job_id: str, module: str, function: str) -> None:
    """Claim a job of the research zone and hand it to ``module.function``."""
    zone = _research(os.getpid())
    with claimed(zone.engine, ResearchJob, job_id, "research", zone.settings.training.round_lease_s) as claim:
        if claim is not None:
            getattr(import_module(module), function)(zone, claim)


def _configured() -> Settings:
    if not _settings:
        raise NotConfiguredError("no settings; expected runner.configure() in the worker's parent")
    return _settings[0]


@functools.lru_cache(maxsize=1)
def _clinical(pid: int) -> ClinicalZone:
    del pid  # a forked child opens its own
    return open_clinical(_configured())


@functools.lru_cache(maxsize=1)
def _research(pid: int) -> ResearchZone:
    del pid  # a forked child opens its own
    return open_research(_configured())
