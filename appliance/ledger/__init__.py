"""Append-only, hash-chained, signed record of every step in a zone."""

from appliance.ledger.chain import Ledger, LedgerBodyError, LedgerModel, commitment
from appliance.ledger.verification import Problem, Report, verify

__all__ = ["Ledger", "LedgerBodyError", "LedgerModel", "Problem", "Report", "commitment", "verify"]
