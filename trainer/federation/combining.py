"""What of a plan goes with what: strategy, privacy, compression, encryption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.compression import CompressionError
from trainer.encryption import EncryptionError
from trainer.errors import StrategyError
from trainer.federation.errors import PlanError
from trainer.peers import PEERS, terms
from trainer.privacy.promise import PrivacyError, check_promised

if TYPE_CHECKING:
    from trainer.federation.plan import Plan


def check_together(plan: Plan) -> None:
    """Raise PlanError for a strategy that is none, and for parts that no run can have together."""
    try:
        terms(plan.strategy.name).check_parameters(plan.strategy.parameters)
    except StrategyError as error:
        raise PlanError(f"strategy: {error}") from error
    _check_peers(plan)
    _check_privacy(plan)
    _check_encryption(plan)


def _check_peers(plan: Plan) -> None:
    """Check that nothing is asked of single updates where sites keep models of their own."""
    for name in ("compression", "encryption"):
        if plan.own_models and getattr(plan, name) is not None:
            raise PlanError(f"{name}: {plan.strategy.name} sends models of sites, not updates; expected none")


def _check_privacy(plan: Plan) -> None:
    """Check that a promise goes with the task and holds for all rounds."""
    try:
        check_promised(plan.strategy.name, plan.privacy)
        if plan.privacy is None:
            return
        plan.privacy.check_fits(plan.task, plan.strategy.name)
    except PrivacyError as error:
        raise PlanError(f"privacy: {error}") from error
    cost = plan.privacy.run_epsilon(plan.task, plan.total_rounds)
    if cost > plan.privacy.epsilon:
        raise PlanError(
            f"privacy.epsilon: {plan.total_rounds} rounds cost {cost:.3g}; expected at least that, "
            "fewer rounds or more noise"
        )


def _check_encryption(plan: Plan) -> None:
    """Check that the coordinator can do its part without reading anything."""
    compression = None if plan.compression is None else plan.compression.name
    try:
        if plan.compression is not None:
            readable = plan.encryption is None and plan.strategy.name not in PEERS
            plan.compression.check_fits(readable=readable)
        if plan.encryption is None:
            return
        plan.encryption.check_fits(plan.strategy.name, compression, plan.min_sites, plan.max_update_norm)
    except (CompressionError, EncryptionError) as error:
        raise PlanError(str(error)) from error
