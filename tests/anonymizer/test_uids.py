from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from anonymizer.keys import ProjectKeys
from anonymizer.uids import map_uid, map_unless_well_known

KEYS = ProjectKeys.derive(b"k" * 32, "a")
ARCS = st.lists(st.integers(0, 10**9).map(str), min_size=2, max_size=6)
UIDS = ARCS.map(lambda arcs: "1.2." + ".".join(arcs))


@given(UIDS)
def test_a_mapped_uid_is_valid_and_says_that_it_is_a_uuid(uid: str) -> None:
    mapped = UID(map_uid(KEYS, uid))
    assert mapped.is_valid
    assert mapped.startswith("2.25.")
    value = uuid.UUID(int=int(mapped.removeprefix("2.25.")))
    assert (value.version, value.variant) == (8, uuid.RFC_4122)


@given(UIDS, UIDS)
def test_the_map_is_stable_and_injective(first: str, second: str) -> None:
    assert (map_uid(KEYS, first) == map_uid(KEYS, second)) == (first == second)


@given(UIDS)
def test_another_key_gives_another_map(uid: str) -> None:
    assert map_uid(KEYS, uid) != map_uid(ProjectKeys.derive(b"k" * 32, "b"), uid)


def test_padding_is_no_part_of_a_uid() -> None:
    assert map_uid(KEYS, "1.2.3\0") == map_uid(KEYS, "1.2.3")


def test_uids_of_the_standard_stay() -> None:
    for uid in ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.4.1.1", ""):
        assert map_unless_well_known(KEYS, uid) == uid


def test_a_uid_that_only_looks_like_one_of_the_standard_is_mapped() -> None:
    assert map_unless_well_known(KEYS, "1.2.840.10008.4711.19560708").startswith("2.25.")
