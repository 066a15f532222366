"""Rights: what a person may do. Nothing is allowed that is not named here and granted."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Right(StrEnum):
    """One thing a person may do."""

    VIEW = "view"  # states, counts, reasons, without identities
    VIEW_IDENTITY = "view_identity"  # names, identifiers, pictures
    REVIEW_QUARANTINE = "review_quarantine"
    MANAGE_PEERS = "manage_peers"  # peers and rules
    MANAGE_RETENTION = "manage_retention"  # which studies are deleted when, and holds
    MANAGE_USERS = "manage_users"
    APPROVE_MODEL = "approve_model"
    APPROVE_PROTOCOL = "approve_protocol"
    RETRY_JOBS = "retry_jobs"
    REIDENTIFY = "reidentify"
    FETCH_STUDIES = "fetch_studies"  # query archives, pull studies from them
    STORE_STUDIES = "store_studies"  # send instances over the web (STOW-RS)


# Usual people and programs, as a start for the form that grants rights.
ROLES: Final[Mapping[str, frozenset[Right]]] = MappingProxyType(
    {
        "operator": frozenset(
            {
                Right.VIEW,
                Right.MANAGE_PEERS,
                Right.MANAGE_RETENTION,
                Right.MANAGE_USERS,
                Right.FETCH_STUDIES,
                Right.RETRY_JOBS,
                Right.REVIEW_QUARANTINE,
            }
        ),
        "radiologist": frozenset({Right.VIEW, Right.VIEW_IDENTITY, Right.APPROVE_MODEL, Right.FETCH_STUDIES}),
        "privacy": frozenset(
            {
                Right.VIEW,
                Right.APPROVE_PROTOCOL,
                Right.REVIEW_QUARANTINE,
                Right.REIDENTIFY,
                Right.VIEW_IDENTITY,
            }
        ),
        "gateway": frozenset({Right.STORE_STUDIES}),
        "admin": frozenset(Right),
    }
)


def parse(names: Iterable[str]) -> frozenset[Right]:
    """Return the rights of these names; a name of none is ignored, so that it grants nothing."""
    known = {right.value: right for right in Right}
    return frozenset(known[name] for name in names if name in known)
