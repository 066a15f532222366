"""Shared studies in every standing, for the panel's pages."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

from appliance.db.research import StudyShare

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

PURPOSE = "external validation of the nodule model"


def plant(session: Session, site: str, at: datetime) -> None:
    """Plant shares; the files of what was given are not here any more."""
    standings = (
        (site, "south", "given", None),
        (site, "west", "received", None),
        (site, "west", "withdrawn", None),
        ("south", site, "received", None),
        ("west", site, "withdrawn", None),
        ("south", site, "erased", None),
        (site, "south", "", {"share": {"step": "given"}}),
    )
    for number, (giver, receiver, step, pending) in enumerate(standings):
        digest = hashlib.sha256(f"share {number}".encode()).hexdigest()
        session.add(
            StudyShare(
                manifest_sha256=digest,
                manifest={
                    "studies": 12 + number,
                    "subjects": 11,
                    "files": [{"sha256": digest}],
                    "ethics_number": "EK 2026/7",
                    "purpose": PURPOSE,
                },
                giver=giver,
                receiver=receiver,
                step=step,
                pending=pending,
                path="" if giver == site else f"shared/{digest}",
                decided_by="cli:officer",
                created_at=at - timedelta(hours=number),
            )
        )
