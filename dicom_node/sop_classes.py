"""Which SOP classes are taken for storage: one rule for C-STORE, C-GET, STOW-RS and WADO-RS.

Storage classes are those that the standard's dictionary (PS3.6 annex A) names so, but for the storage of
non-patient objects (PS3.4 annex GG), which belong to no study. That annex marks some as retired. Private is
what does not lie under the root of the standard. What lies there and is unknown is of a later edition: it is
always taken, since what is stored as received needs no understanding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

ROOT: Final = "1.2.840.10008."  # of all UIDs that the standard defines (PS3.5 annex A)
_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_RETIRED: Final = "Retired"
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
class Registered:
    """A UID as PS3.6 annex A lists it."""

    name: str
    kind: str
    retired: bool


@dataclass(frozen=True)
class StorageClasses:
    """What a node takes beside the storage classes of the standard that are in force.

    Parameters
    ----------
    retired : bool
        Those that the standard retired.
    private : frozenset of str or None
        The private ones; None stands for all.
    """

    retired: bool = True
    private: frozenset[str] | None = None

    def accepts(self, sop_class_uid: str) -> bool:
        """Say whether instances of this SOP class are taken."""
        if not sop_class_uid.startswith(ROOT):
            return self.private is None or sop_class_uid in self.private
        return is_storage(sop_class_uid) and (self.retired or not is_retired(sop_class_uid))


EVERY: Final = StorageClasses()


@cache
def dictionary() -> dict[str, Registered]:
    """Return every UID of PS3.6 that pydicom knows, with those that pynetdicom adds to it."""
    import pynetdicom  # noqa: F401, PLC0415 -- heavy
    from pydicom._uid_dict import UID_dictionary  # noqa: PLC0415

    return {
        uid: Registered(facts[0], facts[1], facts[3] == _RETIRED) for uid, facts in UID_dictionary.items()
    }


def is_storage(sop_class_uid: str) -> bool:
    """Say whether instances of this SOP class may be stored at all, whatever a node takes."""
    known = dictionary().get(sop_class_uid)
    if known is None:
        return True
    # Of two retired classes PS3.6 has forgotten the names; their UIDs lie among those of storage.
    nameless = not known.name and known.retired and sop_class_uid.startswith(_STORAGE_ROOT)
    named = "SOP Class" in known.kind and ("Storage" in known.name or nameless)
    return named and sop_class_uid not in _NOT_STORED


def is_retired(sop_class_uid: str) -> bool:
    """Say whether the standard retired it."""
    known = dictionary().get(sop_class_uid)
    return known is not None and known.retired


def storage_classes() -> dict[str, Registered]:
    """Return by UID the storage classes that the standard names, retired ones included."""
    return {uid: known for uid, known in dictionary().items() if is_storage(uid)}
