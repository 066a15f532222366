"""Errors of the federation's engine-neutral parts."""

from __future__ import annotations

from trainer.errors import TrainerError


class PlanError(TrainerError):
    """A plan cannot be read; the message names the field and what was expected, never the value."""


class ReceiptError(TrainerError):
    """A receipt is not what the site signed."""


class AggregationError(TrainerError):
    """A round cannot be aggregated, for example because too few usable updates arrived."""
