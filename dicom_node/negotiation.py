"""Which presentation contexts the storage SCP accepts (PS3.7 annex D.3, PS3.8 9.3.2).

Accepted: every SOP class that the standard's dictionary names a storage class of patient objects, retired
ones included, and every SOP class it does not know (private ones, and those of later editions): what is
stored as received needs no understanding. Not accepted: what the dictionary knows as another service, and
the storage of non-patient objects (PS3.4 annex GG), which belong to no study. Transfer syntaxes: all that
pydicom names and that can stand in a DIMSE message; a private one could not be read later, so it is not
accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

VERIFICATION: Final = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"

# MIME and XML encodings, DICOM-RTV streams (PS3.22) and Papyrus files are no encodings of a DIMSE data set.
_NOT_FOR_MESSAGES: Final = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.", "1.2.840.10008.1.20")
_NOT_STORED: Final = frozenset(
    {
        "1.2.840.10008.1.3.10",  # Media Storage Directory: on media only
        "1.2.840.10008.1.20.1",  # Storage Commitment Push: a service
        "1.2.840.10008.1.20.2",
        "1.2.840.10008.5.1.1.27",  # Stored Print
        "1.2.840.10008.5.1.4.1.1.200.1",  # non-patient objects: protocols, hanging protocols,
        "1.2.840.10008.5.1.4.1.1.200.3",  # palettes, implants, inventories
        "1.2.840.10008.5.1.4.1.1.200.7",
        "1.2.840.10008.5.1.4.1.1.201.1",
        "1.2.840.10008.5.1.4.38.1",
        "1.2.840.10008.5.1.4.39.1",
        "1.2.840.10008.5.1.4.43.1",
        "1.2.840.10008.5.1.4.44.1",
        "1.2.840.10008.5.1.4.45.1",
    }
)


@dataclass(frozen=True)
class Roles:
    """Which roles a requestor may take in a presentation context (PS3.7 D.3.3.4)."""

    scu: bool = True
    scp: bool = False


_NONE: Final[Mapping[str, Roles]] = MappingProxyType({})
# Encodings of the small data sets of queries and notifications; deflated ones could grow without bound.
_PLAIN: Final = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.1"})


@cache
def _dictionary() -> dict[str, tuple[str, str]]:
    """Return name and type of every UID that pydicom knows, with those that pynetdicom adds to it."""
    import pynetdicom  # noqa: F401, PLC0415
    from pydicom._uid_dict import UID_dictionary  # noqa: PLC0415

    return {uid: (facts[0], facts[1]) for uid, facts in UID_dictionary.items()}


@cache
def transfer_syntaxes() -> frozenset[str]:
    """Return the UIDs of all transfer syntaxes that are accepted."""
    return frozenset(
        uid
        for uid, (_, kind) in _dictionary().items()
        if kind == "Transfer Syntax" and not uid.startswith(_NOT_FOR_MESSAGES)
    )


def is_stored(sop_class_uid: str) -> bool:
    """Say whether instances of this SOP class are taken."""
    name, kind = _dictionary().get(sop_class_uid, ("", ""))
    if not kind:
        return True
    return "SOP Class" in kind and "Storage" in name and sop_class_uid not in _NOT_STORED


def storage_classes() -> dict[str, str]:
    """Return name by UID of the known SOP classes that are taken."""
    return {uid: name for uid, (name, _) in _dictionary().items() if is_stored(uid)}


def supported_contexts(
    proposed: Iterable[Any],
    *,
    storage: bool = True,
    served: Mapping[str, Roles] = _NONE,
    retrieving: Collection[str] = (),
) -> Sequence[Any]:
    """Return what the acceptor supports of the proposed presentation contexts.

    The order of transfer syntaxes follows the proposal, so that a sender's own encoding is kept where it
    proposes that first.

    Parameters
    ----------
    proposed : iterable
        Presentation contexts as pynetdicom has them.
    storage : bool
        Whether the requestor may send instances.
    served : mapping
        The roles of a requestor in further services, by abstract syntax.
    retrieving : collection of str
        The storage classes of which the requestor may be, and wants to be, the SCP.
    """
    from pynetdicom import build_context  # noqa: PLC0415

    known = transfer_syntaxes()
    wanted: dict[str, list[str]] = {}
    for context in proposed:
        abstract = str(context.abstract_syntax)
        stored = is_stored(abstract) and (storage or abstract in retrieving)
        if abstract == VERIFICATION or abstract in served or stored:
            usable = _PLAIN if abstract in served else known
            syntaxes = wanted.setdefault(abstract, [])
            offered = (str(syntax) for syntax in context.transfer_syntax)
            syntaxes.extend(syntax for syntax in offered if syntax in usable and syntax not in syntaxes)
    contexts = [build_context(abstract, syntaxes) for abstract, syntaxes in wanted.items() if syntaxes]
    for context in contexts:
        abstract = str(context.abstract_syntax)
        roles = served.get(abstract)
        if roles is None and abstract in retrieving:
            roles = Roles(scu=storage, scp=True)
        if roles is not None:
            context.scu_role, context.scp_role = roles.scu, roles.scp
    # An SCP supports verification whatever is proposed (PS3.4 annex A.4); the list must not be empty.
    if VERIFICATION not in wanted:
        contexts.append(build_context(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN]))
    return contexts
