from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.errors import AnonymizerError, UnusablePatientIDError
from anonymizer.keys import ProjectKeys
from anonymizer.pseudonyms import pseudonym

KEYS = ProjectKeys.derive(b"k" * 32, "a")
IDS = st.text(st.characters(blacklist_characters="\\\0", codec="utf-8"), min_size=1, max_size=64)


def _or_none(keys: ProjectKeys, patient_id: str, issuer: str) -> str | None:
    try:
        return pseudonym(keys, patient_id, issuer)
    except UnusablePatientIDError:
        return None


@pytest.mark.parametrize(
    "patient_id",
    [
        "", " ", "\0", "\\", "4711\\4712", "ANONYMOUS", "anonymized", "N/A", "none", "Unknown", "UNBEKANNT",
        "0", "000000", "XXXX", "9999", "-", "...",
        "????", "123", "123456", "1234567890", "012345", "test", "T E S T",
        "ANON123", "TEST-1", "Unknown 1", "anonymized_0042", "Patient.7", "Test Patient 3", "UNBEKANNT/12",
        "test patient", "John Doe", "\uff2e\uff0f\uff21", "\uff10\uff10", "aaa", "AbC",
    ],
)  # fmt: skip
def test_an_id_that_names_nobody_or_more_than_one_is_refused(patient_id: str) -> None:
    with pytest.raises(UnusablePatientIDError) as caught:
        pseudonym(KEYS, patient_id, "issuer")
    assert len(patient_id) < 4 or patient_id not in str(caught.value)


@pytest.mark.parametrize(
    "patient_id",
    ["4711", "1CT1", "MRN-0001", "345", "ANON-2024-01712", "TESTA-1", "P-1", "Müller 3", "山田 12", "A1"],
)
def test_a_usable_id_has_a_pseudonym_of_24_characters(patient_id: str) -> None:
    found = pseudonym(KEYS, patient_id, "")
    assert len(found) == 24
    assert set(found) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")


def test_blanks_around_id_and_issuer_are_no_part_of_them() -> None:
    assert pseudonym(KEYS, " 4711 ", "H1 ") == pseudonym(KEYS, "4711", "H1")


def test_issuer_and_id_cannot_be_shifted_into_one_another() -> None:
    assert pseudonym(KEYS, "1AX", "H") != pseudonym(KEYS, "AX", "H1")
    assert pseudonym(KEYS, "4711", "H1") != pseudonym(KEYS, "4711", "H2")


def test_several_issuers_are_refused() -> None:
    with pytest.raises(UnusablePatientIDError):
        pseudonym(KEYS, "4711", "H1\\H2")


def test_projects_and_sites_have_unlinkable_pseudonyms() -> None:
    other_project = ProjectKeys.derive(b"k" * 32, "b")
    other_site = ProjectKeys.derive(b"l" * 32, "a")
    assert len({pseudonym(keys, "4711", "") for keys in (KEYS, other_project, other_site)}) == 3


def test_the_three_keys_of_a_project_differ_and_do_not_show() -> None:
    assert len({KEYS.pseudonym, KEYS.uid, KEYS.date}) == 3
    assert repr(KEYS) == "ProjectKeys()"


@pytest.mark.parametrize(("master", "project"), [(b"short", "a"), (b"k" * 32, "")])
def test_a_weak_master_or_a_nameless_project_is_refused(master: bytes, project: str) -> None:
    with pytest.raises(AnonymizerError):
        ProjectKeys.derive(master, project)


@given(IDS, IDS)
def test_different_ids_have_different_pseudonyms(first: str, second: str) -> None:
    a, b = _or_none(KEYS, first, ""), _or_none(KEYS, second, "")
    if a is not None and b is not None:
        assert (a == b) == (first.strip(" ") == second.strip(" "))


@given(IDS)
def test_a_pseudonym_is_stable(patient_id: str) -> None:
    assert _or_none(KEYS, patient_id, "x") == _or_none(ProjectKeys.derive(b"k" * 32, "a"), patient_id, "x")
