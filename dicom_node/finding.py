"""The Query SCP: C-FIND of the Patient Root and Study Root information models (PS3.4 C.4.1)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pynetdicom.dimse_primitives import C_FIND

from dicom_node import sending
from dicom_node.identifiers import PATIENT_ROOT, STUDY_ROOT, Asked, IdentifierError, read_query, write_answer
from dicom_node.negotiation import Roles
from dicom_node.query import QueryError
from dicom_node.services import RequestError, Service

if TYPE_CHECKING:
    from dicom_node.ports import Catalogue, Decision
    from dicom_node.services import Exchange

PATIENT_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"

# PS3.4 table C.4-1.
SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
PENDING_WITH_UNSUPPORTED_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
OUT_OF_RESOURCES: Final = 0xA700
IDENTIFIER_DOES_NOT_MATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000

MAX_MATCHES: Final = 10_000
_BREATH: Final = 16  # answers between looks whether the peer has changed its mind
_BREATH_S: Final = 0.001

_LEVELS: Final = {PATIENT_ROOT_FIND: PATIENT_ROOT, STUDY_ROOT_FIND: STUDY_ROOT}


def find_service(catalogue: Catalogue, ae_title: str, max_matches: int = MAX_MATCHES) -> Service:
    """Return the service that answers queries.

    Parameters
    ----------
    catalogue : Catalogue
        What is stored.
    ae_title : str
        Ours, from which matches can be retrieved.
    max_matches : int
        Answers at most; where more match, the last response says 0xA700.
    """

    def answer(exchange: Exchange) -> None:
        _find(exchange, catalogue, ae_title, max_matches)

    return Service(
        roles={uid: Roles() for uid in _LEVELS},
        answers={C_FIND: answer},
        permitted=_may_query,
        failure=UNABLE_TO_PROCESS,
    )


def _may_query(decision: Decision) -> bool:
    return decision.may_query


def _find(exchange: Exchange, catalogue: Catalogue, ae_title: str, max_matches: int) -> None:
    try:
        ds = exchange.data_set("Identifier")
        asked = read_query(ds, _LEVELS[exchange.abstract_syntax], max_matches + 1)
        matches = catalogue.find(asked.query)
    except (IdentifierError, QueryError, RequestError) as error:
        raise RequestError(IDENTIFIER_DOES_NOT_MATCH, str(error)) from error
    last = _send(exchange, asked, matches[:max_matches], ae_title)
    if last == SUCCESS and len(matches) > max_matches:
        last = OUT_OF_RESOURCES
    exchange.respond(last)


def _send(exchange: Exchange, asked: Asked, matches: list[dict[str, str]], ae_title: str) -> int:
    status = PENDING if asked.complete else PENDING_WITH_UNSUPPORTED_KEYS
    for number, match in enumerate(matches):
        if number % _BREATH == 0:
            # A message of the peer is read only while nothing waits to be sent to it.
            sending.wait_for_room(exchange.association, queued=0)
            time.sleep(_BREATH_S)
        if exchange.cancelled():
            return CANCELLED
        exchange.respond(status, data=write_answer(asked, match, ae_title, explicit=exchange.explicit))
    return SUCCESS
