"""Modality Performed Procedure Step and Instance Availability Notification SCP (PS3.4 annexes F.7 and R).

Both tell when a study is complete; no more of them is kept than that needs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.dimse_primitives import N_CREATE, N_SET

from dicom_node.errors import DICOMNodeError
from dicom_node.negotiation import Roles
from dicom_node.ports import COMPLETED, DISCONTINUED, IN_PROGRESS, Step
from dicom_node.services import RequestError, Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.ports import Decision, StepKeeper
    from dicom_node.services import Exchange

PERFORMED_PROCEDURE_STEP: Final = "1.2.840.10008.3.1.2.3.3"
INSTANCE_AVAILABILITY: Final = "1.2.840.10008.5.1.4.33"

# PS3.7 annex C, PS3.4 table F.7.2-2.
SUCCESS: Final = 0x0000
INVALID_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_INSTANCE: Final = 0x0117
RESOURCE_LIMITATION: Final = 0x0213
NO_LONGER_UPDATED: Final = 0xA710  # an error id beside 0x0110

MAX_INSTANCES: Final = 25_000
_UID: Final = re.compile(r"[0-9][0-9.]{0,63}\Z")


class StepError(DICOMNodeError):
    """A procedure step that cannot be read; the text names the attribute."""


def procedure_step_service(keeper: StepKeeper) -> Service:
    """Return the service that takes modalities' procedure steps (PS3.4 F.7.2)."""

    def create(exchange: Exchange) -> None:
        step = _readable(lambda: read_step(exchange.data_set("AttributeList")))
        uid = str(exchange.request.AffectedSOPInstanceUID or "")
        if not _UID.match(uid):
            raise RequestError(INVALID_INSTANCE, "expected a SOP Instance UID")
        if step.status != IN_PROGRESS:
            raise RequestError(INVALID_VALUE, "PerformedProcedureStepStatus: expected IN PROGRESS")
        exchange.respond(SUCCESS if keeper.create(exchange.caller, uid, step) else DUPLICATE)

    def update(exchange: Exchange) -> None:
        step = _readable(lambda: read_step(exchange.data_set("ModificationList")))
        if step.status not in {"", IN_PROGRESS, COMPLETED, DISCONTINUED}:
            raise RequestError(INVALID_VALUE, "PerformedProcedureStepStatus: no status")
        before = keeper.update(str(exchange.request.RequestedSOPInstanceUID), step)
        if before is None:
            raise RequestError(NO_SUCH_INSTANCE, "no such procedure step")
        if before != IN_PROGRESS:
            exchange.respond(PROCESSING_FAILURE, fields={"ErrorID": NO_LONGER_UPDATED})
            return
        exchange.respond(SUCCESS)

    return Service(
        roles={PERFORMED_PROCEDURE_STEP: Roles()},
        answers={N_CREATE: create, N_SET: update},
        permitted=_may_store,
    )


def availability_service(keeper: StepKeeper) -> Service:
    """Return the service that hears that a study's instances are available (PS3.4 annex R)."""

    def create(exchange: Exchange) -> None:
        step = _readable(lambda: read_notification(exchange.data_set("AttributeList")))
        uid = str(exchange.request.AffectedSOPInstanceUID or generate_uid())
        if not _UID.match(uid):
            raise RequestError(INVALID_INSTANCE, "expected a SOP Instance UID")
        created = keeper.create(exchange.caller, uid, step)
        exchange.respond(SUCCESS if created else DUPLICATE, fields={"AffectedSOPInstanceUID": uid})

    return Service(roles={INSTANCE_AVAILABILITY: Roles()}, answers={N_CREATE: create}, permitted=_may_store)


def _may_store(decision: Decision) -> bool:
    return decision.may_store


def _readable(read: Callable[[], Step]) -> Step:
    try:
        step = read()
    except (StepError, RequestError) as error:
        raise RequestError(INVALID_VALUE, str(error)) from error
    if len(step.instances) > MAX_INSTANCES:
        raise RequestError(RESOURCE_LIMITATION, f"expected at most {MAX_INSTANCES} instances")
    return step


def read_step(ds: Dataset) -> Step:
    """Return what an attribute list of a procedure step says (PS3.4 table F.7.2-1).

    Raises
    ------
    StepError
    """
    scheduled = _sequence(ds, "ScheduledStepAttributesSequence")
    return Step(
        _text(ds, "PerformedProcedureStepStatus"),
        tuple(dict.fromkeys(_uid(one, "StudyInstanceUID") for one in scheduled)),
        tuple(
            dict.fromkeys(
                _uid(one, "ReferencedSOPInstanceUID")
                for series in _sequence(ds, "PerformedSeriesSequence")
                for keyword in ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")
                for one in _sequence(series, keyword)
            )
        ),
    )


def read_notification(ds: Dataset) -> Step:
    """Return an Instance Availability Notification as a step that is completed (PS3.4 table R.3.2-1).

    Raises
    ------
    StepError
    """
    instances = [
        _uid(one, "ReferencedSOPInstanceUID")
        for series in _sequence(ds, "ReferencedSeriesSequence")
        for one in _sequence(series, "ReferencedSOPSequence")
    ]
    if not instances:
        raise StepError("ReferencedSeriesSequence: expected instances")
    return Step(COMPLETED, (_uid(ds, "StudyInstanceUID"),), tuple(dict.fromkeys(instances)))


def _sequence(ds: Dataset, keyword: str) -> list[Dataset]:
    try:
        found = list(ds.get(keyword) or ())
    except Exception as error:  # bytes from the wire, decoded at this moment
        raise StepError(f"{keyword}: cannot be read") from error
    if not all(isinstance(one, Dataset) for one in found):
        raise StepError(f"{keyword}: expected a sequence")
    return found


def _text(ds: Dataset, keyword: str) -> str:
    try:
        return str(ds.get(keyword) or "")
    except Exception as error:  # bytes from the wire, decoded at this moment
        raise StepError(f"{keyword}: cannot be read") from error


def _uid(ds: Dataset, keyword: str) -> str:
    value = _text(ds, keyword)
    if not _UID.match(value):
        raise StepError(f"{keyword}: expected a UID")
    return value
