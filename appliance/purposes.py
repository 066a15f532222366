"""What somebody may be re-identified for: a short list, so that the ledger can say it."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Purpose(StrEnum):
    """What somebody is re-identified for; stands in the ledger as it is."""

    INCIDENTAL_FINDING = "incidental_finding"
    PATIENT_SAFETY = "patient_safety"
    WITHDRAWAL = "withdrawal"  # GDPR Articles 7 and 21
    PATIENT_REQUEST = "patient_request"  # GDPR Article 15
    DATA_QUALITY = "data_quality"
    AUTHORITY = "authority"
    OTHER = "other"


WORDS: Final[Mapping[Purpose, str]] = MappingProxyType(
    {
        Purpose.INCIDENTAL_FINDING: "Incidental finding",
        Purpose.PATIENT_SAFETY: "Safety of the patient",
        Purpose.WITHDRAWAL: "Consent withdrawn or objection",
        Purpose.PATIENT_REQUEST: "The patient's own request",
        Purpose.DATA_QUALITY: "Data quality: look at the source",
        Purpose.AUTHORITY: "Duty to an authority",
        Purpose.OTHER: "Something else",
    }
)
