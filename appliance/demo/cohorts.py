"""One hospital's studies: drawn, given to invented people, written as DICOM files, with their labels."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from appliance.demo.drawing import draw
from appliance.demo.identities import Person, invent
from appliance.demo.instances import Picture, Place, Visit, write_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.demo.hospitals import Hospital

LABEL: Final = "lung-lesion"
SECOND_VISIT: Final = 0.08
# Patient IDs that a node must not hash but quarantine (DESIGN: Two zones), one kind per hospital.
UNUSABLE_PATIENT_IDS: Final = ("", "UNKNOWN", "MZ1\\MZ2")


@dataclass(frozen=True)
class CohortStudy:
    """One study on disk: its files; ``label`` is None where the labels file says nothing of it."""

    paths: tuple[Path, ...]
    patient_id: str
    issuer: str
    study_instance_uid: str
    label: int | None
    releasable: bool
    planted: frozenset[str]


@dataclass(frozen=True)
class Cohort:
    """What one hospital sends."""

    site: str
    studies: tuple[CohortStudy, ...]
    labels_csv: Path
    label_rows_wrong: int

    @property
    def planted(self) -> frozenset[str]:
        """Every identifying value in these studies."""
        return frozenset().union(*(study.planted for study in self.studies))

    def write(self, path: Path) -> None:
        """Write everything as JSON; :meth:`read` reads it back."""
        studies = [
            {**vars(study), "paths": [str(p) for p in study.paths], "planted": sorted(study.planted)}
            for study in self.studies
        ]
        content = {**vars(self), "labels_csv": str(self.labels_csv), "studies": studies}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Cohort:
        """Read what :meth:`write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        studies = tuple(
            CohortStudy(**{**s, "paths": tuple(map(Path, s["paths"])), "planted": frozenset(s["planted"])})
            for s in content["studies"]
        )
        return cls(content["site"], studies, Path(content["labels_csv"]), content["label_rows_wrong"])


def draw_cohort(
    hospital: Hospital, index: int, folder: Path, seed: int, drawn: Callable[[], None] = lambda: None
) -> Cohort:
    """Draw and write one hospital's studies.

    Parameters
    ----------
    hospital : Hospital
        Decides look, number and prevalence.
    index : int
        Of the hospital: part of the seed, and which unusable patient ID one study gets.
    folder : Path
        Receives ``studies/*.dcm`` and ``labels.csv``.
    seed : int
        The same seed gives the same bytes.
    drawn : callable
        Called after each study.
    """
    rng = np.random.default_rng([seed, index])
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    studies = []
    for number, (person, lesion) in enumerate(_people(rng, hospital)):
        studies.append(_write(rng, hospital, person, folder / "studies" / f"{number:04d}.dcm", lesion=lesion))
        drawn()
    person = invent(rng, hospital.ae_title[:3], len(studies))
    unusable = dataclasses.replace(person, patient_id=UNUSABLE_PATIENT_IDS[index % len(UNUSABLE_PATIENT_IDS)])
    study = _write(rng, hospital, unusable, folder / "studies" / f"{len(studies):04d}.dcm", lesion=False)
    studies.append(dataclasses.replace(study, label=None, releasable=False))
    drawn()
    wrong = _write_labels(rng, folder / "labels.csv", studies)
    return Cohort(hospital.site, tuple(studies), folder / "labels.csv", wrong)


def draw_next(hospital: Hospital, index: int, folder: Path, seed: int, *, lesion: bool) -> CohortStudy:
    """Draw the study of a person whom the federation has not seen."""
    rng = np.random.default_rng([seed, index, 1])
    folder.mkdir(parents=True, exist_ok=True)
    person = invent(rng, hospital.ae_title[:3], 9000)
    return _write(rng, hospital, person, folder / "next.dcm", lesion=lesion)


def place_of(hospital: Hospital) -> Place:
    """Return the hospital as its modality names it."""
    number = sum(hospital.ae_title.encode())
    return Place(
        institution=hospital.title,
        address=f"{number} {hospital.title} Avenue, Inventown",
        station=f"{hospital.ae_title[:6]}-DXROOM{number % 10}",
        serial_number=f"SN{number}-{number * 7919}",
        manufacturer="Invented Imaging",
        character_set=hospital.character_set,
        transfer_syntax=hospital.transfer_syntax,
    )


def _people(rng: np.random.Generator, hospital: Hospital) -> Iterator[tuple[Person, bool]]:
    lesions = np.arange(hospital.studies) < round(hospital.studies * hospital.prevalence)
    rng.shuffle(lesions)
    number, person = 0, None
    for lesion in lesions:
        if person is None or rng.random() >= SECOND_VISIT:
            person = invent(rng, hospital.ae_title[:3], number, hospital.issuer)
            number += 1
        yield person, bool(lesion)


def _write(
    rng: np.random.Generator, hospital: Hospital, person: Person, path: Path, *, lesion: bool
) -> CohortStudy:
    drawing = draw(rng, hospital.look, lesion=lesion)
    visit = _visit(rng)
    place = place_of(hospital)
    picture = Picture(drawing.pixels, hospital.look.bits_stored, hospital.look.photometric)
    write_instance(path, picture, person, place, visit)
    return CohortStudy(
        paths=(path,),
        patient_id=person.patient_id,
        issuer=person.issuer,
        study_instance_uid=visit.study_instance_uid,
        label=int(lesion),
        releasable=True,
        planted=person.planted | place.planted | visit.planted,
    )


def _visit(rng: np.random.Generator) -> Visit:
    study, series, instance, step = (f"2.25.{int.from_bytes(rng.bytes(16), 'big')}" for _ in range(4))
    return Visit(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=instance,
        step_uid=step,
        accession_number=f"ACC{int(rng.integers(10**8, 10**9))}",
        study_id=f"ST{int(rng.integers(10**7, 10**8))}",
        date=f"{int(rng.integers(2021, 2025))}{int(rng.integers(1, 13)):02d}{int(rng.integers(1, 29)):02d}",
        time=f"{int(rng.integers(7, 19)):02d}{int(rng.integers(0, 60)):02d}{int(rng.integers(0, 60)):02d}",
    )


def _write_labels(rng: np.random.Generator, path: Path, studies: list[CohortStudy]) -> int:
    """Write the labels and two wrong rows (an unknown patient, no number); return how many are wrong."""
    columns = ["patient_id", "issuer", "study_instance_uid", "label", "value"]
    unknown = invent(rng, "NOBODY", 1)
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(columns)
        for study in studies:
            if study.label is not None:
                rows.writerow([study.patient_id, study.issuer, study.study_instance_uid, LABEL, study.label])
        rows.writerow([unknown.patient_id, "", "", LABEL, 1])
        first = studies[0]
        rows.writerow([first.patient_id, first.issuer, first.study_instance_uid, LABEL, "perhaps"])
    return 2
