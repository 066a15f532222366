"""DIMSE services (PS3.2 N.5) and how they are negotiated (N.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.conformance.markdown import joined, named, status, table, uid_name
from appliance.conformance.node import statuses
from dicom_node import (
    commitment,
    finding,
    negotiation,
    part10,
    procedure_steps,
    query_scu,
    retrieve_scu,
    retrieving,
    scp,
    scu,
)
from dicom_node.identifiers import UNIQUE
from dicom_node.query import MATCHED, RETURNED, Match

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.conformance.node import DIMSEService, Inspected

_UNCOMPRESSED: Final = (scu.EXPLICIT_VR_LITTLE_ENDIAN, negotiation.IMPLICIT_VR_LITTLE_ENDIAN)
_AS_STORED: Final = "as stored; for explicit VR little endian also implicit VR little endian"
_PLAIN: Final = ", ".join(uid_name(uid) for uid in _UNCOMPRESSED)


@dataclass(frozen=True)
class Use:
    """A service that the node uses as SCU: when, and in which transfer syntaxes."""

    service: str
    sop_classes: tuple[str, ...]
    when: str
    syntaxes: str = _PLAIN
    as_scp: bool = False  # the association is ours, the role is that of the provider


# What this node asks of others; one row for each reason to associate.
USES: Final = (
    Use(
        "Verification",
        (negotiation.VERIFICATION,),
        "a person tests a peer",
        uid_name(negotiation.IMPLICIT_VR_LITTLE_ENDIAN),
    ),
    Use("Storage", (), "a result is delivered", _AS_STORED),
    Use(
        "Storage", (), "a C-MOVE of a peer is answered", f"as stored; where it can be converted also {_PLAIN}"
    ),
    Use(
        "Storage Commitment",
        (commitment.STORAGE_COMMITMENT,),
        "a commitment that a peer asked for is reported (as SCP, on an association of our own)",
        as_scp=True,
    ),
    Use(
        "Storage Commitment",
        (commitment.STORAGE_COMMITMENT,),
        "a destination is asked to commit a result that it stored; it reports on that association or its own",
    ),
    Use("Query", (finding.STUDY_ROOT_FIND,), "a result is read back from its destination: image level"),
    Use("Query", (finding.STUDY_ROOT_FIND,), "a person tests an archive"),
    Use(
        "Retrieve",
        (retrieving.STUDY_ROOT_MOVE,),
        "a person tests an archive: a study that nobody has is asked for, nothing is moved",
    ),
    Use(
        "Query",
        (query_scu.STUDY_ROOT_FIND,),
        "studies are fetched from an archive: study, series and image level, hierarchical",
    ),
    Use(
        "Retrieve",
        (retrieve_scu.STUDY_ROOT_MOVE, retrieve_scu.STUDY_ROOT_GET),
        "studies are fetched: C-MOVE to our own AE title, or C-GET with the SCP role for storage",
        f"{_PLAIN}; C-GET: a context for each storage class and frequent transfer syntax",
    ),
)

# What is to be said of a service beside its tables, by the module that answers it.
_NOTES: Final = {
    "finding": f"""
- Hierarchical queries; no relational ones, no fuzzy matching, no combined date and time ranges.
- At most {finding.MAX_MATCHES} answers; where there are more, the last response is `A700`.
- Keys that mean nothing here are answered empty, with `FF01`. C-CANCEL is taken.
""",
    "retrieving": f"""
- At most {retrieving.MAX_INSTANCES} instances in a request. C-CANCEL is taken.
- Instances go out in the transfer syntax that they are stored in, byte for byte; where a peer does not take
  that, they are converted (section 5.5) to an uncompressed one that it takes.
- The destination of a C-MOVE must be a peer that receives.
""",
    "commitment": f"""
- At most {commitment.MAX_ITEMS} instances in a request.
- What is stored under the SOP class named is committed.
- The report comes on the same association if it can, else on one that this node asks for, again and again,
  after a restart too.
- A request that names all instances of a study calls that study complete.
""",
    "procedure_steps": f"""
- At most {procedure_steps.MAX_INSTANCES} instances in a step.
- Steps tell when a study is complete; they can be neither retrieved nor queried.
""",
}
_MATCHING: Final = {
    Match.TEXT: "single value, wildcard",
    Match.NAME: "single value, wildcard; upper and lower case alike",
    Match.UID: "list of UIDs",
    Match.DATE: "single value, range",
    Match.TIME: "single value, range",
    Match.NUMBER: "single value",
    Match.ANY_OF: "single value, wildcard, several values",
}
_TITLES: Final = {
    "SUCCESS": "success",
    "NO_LONGER_UPDATED": "error ID beside `0110`: a step that is completed is not changed any more",
    "PENDING": "pending: an answer, or sub-operations that go on",
    "PENDING_WITH_UNSUPPORTED_KEYS": "pending; some keys of the request mean nothing here",
}


def blocks(found: Inspected) -> dict[str, str]:
    """Return the tables of the DIMSE services and of their negotiation."""
    syntaxes = [(uid_name(uid), f"`{uid}`") for uid in sorted(negotiation.transfer_syntaxes(), key=_order)]
    permanent = ", ".join(status(code) for code in sorted(scu._PERMANENT))
    return {
        "overview_dimse": table(("SOP class", "User (SCU)", "Provider (SCP)"), _overview(found)),
        "storage_status": _status_table(statuses(scp)),
        "dimse_services": joined(*(_service(service) for service in _merged(found.services))),
        "query_keys": table(("level", "attribute", "role", "matching"), _keys()),
        "uses": table(("service", "SOP classes", "when", "transfer syntaxes proposed"), map(_use, USES)),
        "store_warnings": ", ".join(status(code) for code in sorted(scu._WARNINGS)),
        "store_permanent": permanent,
        "policies": table(("what", "value"), _policies(found)),
        "rejections": table(("why", "result", "source, reason"), _rejections()),
        "contexts": table(
            ("abstract syntax", "transfer syntaxes", "role of the requestor"), _contexts(found)
        ),
        "transfer_syntaxes": table(("transfer syntax", "UID"), syntaxes),
    }


def _overview(found: Inspected) -> Iterable[tuple[str, str, str]]:
    provided = {uid for service in found.services for uid in service.roles} | {negotiation.VERIFICATION}
    used = {uid for use in USES if not use.as_scp for uid in use.sop_classes}
    yield "Storage: all classes of section 10", "yes", "yes"
    for uid in sorted(provided | used, key=uid_name):
        yield named(uid), "yes" if uid in used else "no", "yes" if uid in provided else "no"


def _use(use: Use) -> tuple[str, str, str, str]:
    classes = ", ".join(named(uid) for uid in use.sop_classes) or "those of what is sent"
    return use.service, classes, use.when, use.syntaxes


def _merged(services: Iterable[DIMSEService]) -> list[DIMSEService]:
    """Return one service for each module, with the classes and operations of all."""
    found: dict[str, DIMSEService] = {}
    for service in services:
        known = found.get(service.module)
        if known is None:
            found[service.module] = service
            continue
        operations = tuple(dict.fromkeys((*known.operations, *service.operations)))
        found[service.module] = type(service)(
            service.module,
            {**known.roles, **service.roles},
            operations,
            known.statuses,
            known.sends_instances,
        )
    return list(found.values())


def _service(service: DIMSEService) -> str:
    rows = [
        (named(uid), "yes" if roles.scu else "no", "yes" if roles.scp else "no")
        for uid, roles in service.roles.items()
    ]
    return joined(
        f"#### {', '.join(service.operations)}",
        table(("SOP class", "requestor as SCU", "requestor as SCP"), rows),
        _NOTES.get(service.module, ""),
        _status_table(service.statuses),
    )


def _status_table(found: dict[str, int]) -> str:
    rows = [(status(code), _TITLES.get(name, name.replace("_", " ").lower())) for name, code in found.items()]
    return table(("status", "meaning"), rows)


def _keys() -> Iterable[tuple[str, str, str, str]]:
    seen: set[str] = set()
    for level in RETURNED:
        for keyword in (*RETURNED[level], *MATCHED[level]):
            if keyword in seen:
                continue
            seen.add(keyword)
            kind = MATCHED[level].get(keyword)
            role = "unique key" if keyword in UNIQUE.values() else "key" if kind else "returned"
            yield level.value, keyword, role, _MATCHING[kind] if kind else ""


def _policies(found: Inspected) -> Iterable[tuple[str, str]]:
    config, dicom = scp.SCPConfig(""), found.settings.dicom
    yield "application context", "`1.2.840.10008.3.1.1.1`"
    yield "implementation class UID", f"`{part10.IMPLEMENTATION_CLASS_UID}`"
    yield "implementation version name", f"`{part10.IMPLEMENTATION_VERSION_NAME}`"
    yield "largest PDU received", f"{config.max_pdu_bytes} bytes"
    yield "associations accepted at once", f"{dicom.max_associations} (setting)"
    yield (
        "asynchronous operations",
        "no window is answered: one operation at a time; others wait for their turn",
    )
    yield "SCP/SCU role selection", "storage for C-GET, Storage Commitment; otherwise default roles, see 7.3"
    yield "SOP class (common) extended negotiation", "not supported; proposals are passed over"
    yield "user identity negotiation", "not supported: accepted without a response, and never read"
    yield "items of unknown types", "ignored"
    yield "a silent association ends after", f"{dicom.network_timeout_s:g} s (setting)"
    yield "an association must be requested within", f"{config.association_timeout_s:g} s"


def _rejections() -> list[tuple[str, str, str]]:
    words = {1: "permanent", 2: "transient"}
    sources = {1: "service user", 2: "service provider (ACSE)", 3: "service provider (presentation)"}

    def row(why: str, answer: tuple[int, int, int]) -> tuple[str, str, str]:
        result, source, reason = answer
        return why, f"{result}: {words[result]}", f"{source}: {sources[source]}, {reason}"

    return [
        row("unknown calling AE title, address or certificate; TLS missing", scp._CALLING_NOT_RECOGNIZED),
        row("another called AE title", scp._CALLED_NOT_RECOGNIZED),
        row("not ready, name not resolved, the peer's own bound", scp._TEMPORARY),
        row("too many associations", (2, 3, 2)),
    ]


def _contexts(found: Inspected) -> Iterable[tuple[str, str, str]]:
    yield named(negotiation.VERIFICATION), "all of section 7.4", "SCU"
    yield (
        "storage classes of section 10, private and unknown ones",
        "all of section 7.4",
        "SCU; for C-GET SCP",
    )
    for service in found.services:
        for uid, roles in service.roles.items():
            words = [word for word, holds in (("SCU", roles.scu), ("SCP", roles.scp)) if holds]
            yield named(uid), _PLAIN, " and ".join(words)


def _order(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]
