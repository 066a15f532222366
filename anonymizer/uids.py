"""UIDs: the keyed map to ``2.25.`` and the UIDs that name things of the standard."""

from __future__ import annotations

import hmac
import uuid
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from pydicom._uid_dict import UID_dictionary

from anonymizer.keep_list import sop_classes

if TYPE_CHECKING:
    from anonymizer.keys import ProjectKeys


@lru_cache(maxsize=1)
def well_known() -> frozenset[str]:
    """Return the UIDs that PS3.6 registers.

    They name classes, syntaxes and well-known instances, never a patient's object; the keep list knows SOP
    classes that are newer than the dictionary.
    """
    return frozenset(UID_dictionary) | sop_classes()


def map_uid(keys: ProjectKeys, uid: str) -> str:
    """Map a UID to another one, always the same under the same key.

    The first 122 free bits of an HMAC make a UUID (version 8, RFC 9562), written after ``2.25.`` (PS3.5 B.2).
    A collision would need about 2**61 UIDs.
    """
    digest = hmac.new(keys.uid, uid.strip(" \0").encode("utf-8"), sha256).digest()
    return f"2.25.{_uuid8(digest[:16]).int}"


def _uuid8(octets: bytes) -> uuid.UUID:
    value = int.from_bytes(octets, "big")
    value = (value & ~(0xF << 76)) | (8 << 76)
    value = (value & ~(0x3 << 62)) | (2 << 62)
    return uuid.UUID(int=value)


def map_unless_well_known(keys: ProjectKeys, uid: str) -> str:
    """Map a UID, except one of the standard's own and the empty one."""
    stripped = uid.strip(" \0")
    return stripped if not stripped or stripped in well_known() else map_uid(keys, stripped)
