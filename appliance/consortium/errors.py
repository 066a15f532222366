"""Errors of the consortium's ledger."""

from __future__ import annotations

from appliance.errors import ApplianceError


class ConsortiumError(ApplianceError):
    """Something about the consortium's ledger cannot be done."""


class BlockFormError(ConsortiumError):
    """A block, statement or proof is not one; the message names the place, never the value."""
