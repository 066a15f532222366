"""The tables whose rows are work."""

from __future__ import annotations

from sqlalchemy import Table

from appliance.db.clinical import ClinicalJob
from appliance.db.research import ResearchJob, Round

WorkModel = type[ClinicalJob] | type[ResearchJob] | type[Round]
JobModel = type[ClinicalJob] | type[ResearchJob]


def table_of(model: WorkModel) -> Table:
    """Return the table of a work model."""
    table = model.__table__
    if not isinstance(table, Table):
        raise TypeError(f"{model.__name__} is not mapped to a table")
    return table
