"""An independent check that nothing the original says of the patient is in what would leave.

It shares no code with the engine: its own reader, its own list of what identifies, its own search.
"""

from anonymizer.verify.check import Allowed, Finding, VerificationError, check

__all__ = ["Allowed", "Finding", "VerificationError", "check"]
