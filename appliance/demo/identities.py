"""Invented people: every value is made up, unlikely in any other text, and remembered for the search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

_ONSETS: Final = ("Br", "Dv", "Fj", "Gw", "Kv", "Mz", "Nj", "Pt", "Qu", "Sz", "Tv", "Vr", "Wh", "Xan", "Zh")
_MIDDLES: Final = ("ado", "eli", "imo", "oru", "uva", "yze", "öda", "ilé", "axi", "eku")
_ENDS: Final = ("rvik", "zzen", "lqvist", "mbré", "ntoux", "pshaw", "xford", "wczyk", "gdahl", "bhuri")
_STREETS: Final = ("Invented Lane", "Imaginary Road", "Fictional Square", "Made-Up Street")
_GIVEN_ENDS: Final = ("lys", "mirr", "nqa", "doz", "xel", "vio")


@dataclass(frozen=True)
class Person:
    """One invented patient and the people around the patient.

    ``planted`` holds every identifying value, as text, whatever attribute it stands in.
    """

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    sex: str
    age_years: int
    address: str
    telephone: str
    mother_birth_name: str
    other_patient_id: str
    insurance_number: str
    referring: str
    operator: str
    planted: frozenset[str] = field(repr=False, default=frozenset())


def invent(rng: np.random.Generator, prefix: str, number: int, issuer: str = "") -> Person:
    """Invent one person.

    Parameters
    ----------
    rng : numpy.random.Generator
        The same state gives the same person.
    prefix : str
        Of the hospital's patient numbers.
    number : int
        Running number at this hospital: makes the patient ID unique.
    issuer : str
        Issuer of Patient ID (0010,0021), empty for none.
    """
    family, given = _family(rng), _given(rng)
    mother = f"{_family(rng)}^{_given(rng)}"
    doctor, operator = (f"{_family(rng)}^{_given(rng)}" for _ in range(2))
    patient_id = f"{prefix}-{number:04d}{int(rng.integers(10**5, 10**6))}"
    year, month, day = int(rng.integers(1931, 2004)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    address = f"{int(rng.integers(100, 999))} {rng.choice(_STREETS)} {_family(rng)}"
    telephone = f"+99 {int(rng.integers(10**8, 10**9))}"
    other_id, insurance = f"OLD{int(rng.integers(10**8, 10**9))}", f"INS{int(rng.integers(10**8, 10**9))}"
    birth_date = f"{year:04d}{month:02d}{day:02d}"
    names = {family, given, *mother.split("^"), *doctor.split("^"), *operator.split("^")}
    return Person(
        patient_id=patient_id,
        issuer=issuer,
        name=f"{family}^{given}",
        birth_date=birth_date,
        sex=str(rng.choice(["F", "M", "O"], p=[0.49, 0.49, 0.02])),
        age_years=2024 - year,
        address=address,
        telephone=telephone,
        mother_birth_name=mother,
        other_patient_id=other_id,
        insurance_number=insurance,
        referring=doctor,
        operator=operator,
        planted=frozenset(names | {patient_id, birth_date, address, telephone, other_id, insurance}),
    )


def _family(rng: np.random.Generator) -> str:
    middle = str(rng.choice(_MIDDLES)) + str(rng.choice(_MIDDLES))[1:]
    return str(rng.choice(_ONSETS)) + middle + str(rng.choice(_ENDS))


def _given(rng: np.random.Generator) -> str:
    return str(rng.choice(_ONSETS)) + str(rng.choice(_MIDDLES)) + str(rng.choice(_GIVEN_ENDS))
