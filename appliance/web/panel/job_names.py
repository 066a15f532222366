"""What people call the kinds of work of both zones."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

JOB_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "deidentify": "De-identification",
        "infer": "Inference",
        "deliver": "Delivery",
        "erase": "Deletion of files",
        "fetch": "Fetch",
        "report": "Report of commitment",
        "evaluate": "Evaluation",
        "train": "Local round",
        "aggregate": "Aggregation",
        "send": "Model for a peer",
        "finalize": "Final evaluation",
        "preflight": "Preflight",
        "export": "Model export",
    }
)
