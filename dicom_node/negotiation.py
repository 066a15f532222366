"""Which presentation contexts the storage SCP accepts (PS3.7 annex D.3, PS3.8 9.3.2).

Abstract syntaxes: the storage classes that the inbox takes (:mod:`dicom_node.sop_classes`), and those of
further services. Transfer syntaxes: all that pydicom names and that can stand in a DIMSE message; a private
one could not be read later, so it is not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from dicom_node.sop_classes import EVERY, StorageClasses, dictionary, is_storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

VERIFICATION: Final = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"

# MIME and XML encodings, DICOM-RTV streams (PS3.22) and Papyrus files are no encodings of a DIMSE data set.
_NOT_FOR_MESSAGES: Final = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.", "1.2.840.10008.1.20")


@dataclass(frozen=True)
class Roles:
    """Which roles a requestor may take in a presentation context (PS3.7 D.3.3.4)."""

    scu: bool = True
    scp: bool = False


_NONE: Final[Mapping[str, Roles]] = MappingProxyType({})
# Encodings of the small data sets of queries and notifications; deflated ones could grow without bound.
_PLAIN: Final = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.1"})


@cache
def transfer_syntaxes() -> frozenset[str]:
    """Return the UIDs of all transfer syntaxes that are accepted."""
    return frozenset(
        uid
        for uid, known in dictionary().items()
        if known.kind == "Transfer Syntax" and not uid.startswith(_NOT_FOR_MESSAGES)
    )


def supported_contexts(
    proposed: Iterable[Any],
    *,
    storage: bool = True,
    classes: StorageClasses = EVERY,
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
    classes : StorageClasses
        Of which SOP classes; what is sent to it may be of all.
    served : mapping
        The roles of a requestor in further services, by abstract syntax.
    retrieving : collection of str
        The storage classes of which the requestor may be, and wants to be, the SCP.
    """
    from pynetdicom import build_context  # noqa: PLC0415

    def takes(abstract: str) -> bool:
        return storage and classes.accepts(abstract)

    known = transfer_syntaxes()
    wanted: dict[str, list[str]] = {}
    for context in proposed:
        abstract = str(context.abstract_syntax)
        fetched = abstract in retrieving and is_storage(abstract)
        if abstract == VERIFICATION or abstract in served or fetched or takes(abstract):
            usable = _PLAIN if abstract in served else known
            syntaxes = wanted.setdefault(abstract, [])
            offered = (str(syntax) for syntax in context.transfer_syntax)
            syntaxes.extend(syntax for syntax in offered if syntax in usable and syntax not in syntaxes)
    contexts = [build_context(abstract, syntaxes) for abstract, syntaxes in wanted.items() if syntaxes]
    for context in contexts:
        abstract = str(context.abstract_syntax)
        roles = served.get(abstract)
        if roles is None and abstract in retrieving:
            roles = Roles(scu=takes(abstract), scp=True)
        if roles is not None:
            context.scu_role, context.scp_role = roles.scu, roles.scp
    # An SCP supports verification whatever is proposed (PS3.4 annex A.4); the list must not be empty.
    if VERIFICATION not in wanted:
        contexts.append(build_context(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN]))
    return contexts
