"""Append-only, hash-chained, signed record of every step in a zone."""

from appliance.ledger.chain import Ledger, LedgerBodyError, LedgerModel, commitment
from appliance.ledger.verification import Problem, PublicKey, Report, verify

__all__ = [
    "Ledger",
    "LedgerBodyError",
    "LedgerModel",
    "Problem",
    "PublicKey",
    "Report",
    "commitment",
    "verify",
]
