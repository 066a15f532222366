"""Append-only, hash-chained, signed record of every step in a zone."""

from appliance.ledger.chain import Ledger, LedgerBodyError, commitment
from appliance.ledger.verification import Problem, PublicKey, Report, verify

__all__ = [
    "Ledger",
    "LedgerBodyError",
    "Problem",
    "PublicKey",
    "Report",
    "commitment",
    "verify",
]
