"""Faces of heads: gone from every instance of a series, and nothing else is; what cannot be judged waits."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from anonymizer.engine import Context, Quarantined, deidentify, deidentify_file
from anonymizer.errors import StopError
from anonymizer.faces import decision
from anonymizer.faces.series import Faces
from anonymizer.profiles import load_profile
from tests.anonymizer import heads, scans
from tests.anonymizer.faces import removal
from tests.anonymizer.material import DEFAULT, ct, encode
from tests.anonymizer.scans import Scan
from tests.further import cases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.anonymizer.scans import Slice

HEAD = Context(DEFAULT.keys, "trial", profile=load_profile("head"))
LIGHT = Scan("CT", pixel_mm=2.0, gap_mm=5.0)

SCANS = {
    "CT, axial": Scan("CT", turn_deg=(12, -8, 15)),
    "CT, gantry tilted": Scan("CT", tilt_deg=18),
    "CT, wide and long, 5 mm": Scan("CT", length_mm=290, field_mm=300, gap_mm=5),
    "CT, from the vertex to the nose": Scan("CT", length_mm=150, gap_mm=5),
    "T1, sagittal": Scan("T1", "sagittal", turn_deg=(-15, 5, 10)),
    "T2, coronal": Scan("T2", "coronal", turn_deg=(8, 10, -18)),
    "FLAIR, axial, noisy and uneven": Scan("FLAIR", noise=0.1, bias=0.5, gap_mm=5),
    "T2, axial, fat suppressed": Scan("FATSAT", noise=0.02),
}
REFUSED = {
    "a slab through the brain": Scan("T2", above_mm=-60, length_mm=90),
    "the upper half of a head": Scan("CT", length_mm=105, gap_mm=5),
    "a brain without its head": Scan("STRIPPED", bias=0),
    "a head whose skin does not show": Scan("DIFFUSION", bias=0.1, noise=0.02),
    "five slices": Scan("CT", gap_mm=40),
    "slices with wide gaps": Scan("CT", gap_mm=15),
    "noise": Scan("T1", noise=60.0),
}

SYNTAXES = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


@lru_cache(maxsize=1)
def head() -> heads.Head:
    return heads.drawn(Random(11))  # noqa: S311 - the same head each time


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Slice]]:
    folder = tmp_path_factory.mktemp("series")
    return folder, scans.written(head(), LIGHT, folder)


def _released(folder: Path, out: Path, step: int = 1) -> list[Any]:
    paths = sorted(folder.iterdir())
    seeing = replace(HEAD, faces=Faces.of_paths(paths))
    found = []
    for path in paths[::step]:
        outcome = deidentify_file(path, out / path.name, seeing)
        assert not isinstance(outcome, Quarantined), outcome
        found.append(dcmread(out / path.name))
    return found


@pytest.mark.parametrize(
    "name", cases(SCANS, ["CT, axial", "CT, gantry tilted", "T1, sagittal", "FLAIR, axial, noisy and uneven"])
)
def test_the_face_goes_and_no_pixel_of_the_brain(name: str) -> None:
    scan = SCANS[name]
    found = removal(head(), scan, list(scans.slices(head(), scan)))
    assert found.brain == 0
    assert found.brain_of > 100_000
    assert found.face >= 0.98
    assert found.landmarks_left == frozenset()
    assert found.of_head < 0.3


@pytest.mark.parametrize(
    "name",
    cases(REFUSED, ["a head whose skin does not show", "five slices", "slices with wide gaps", "noise"]),
)
def test_what_does_not_show_a_head_and_its_face_is_refused(name: str) -> None:
    with pytest.raises(StopError) as caught:
        removal(head(), REFUSED[name], list(scans.slices(head(), REFUSED[name])))
    assert caught.value.code == "face_not_removed"


def test_in_the_files_the_face_is_air_and_every_other_pixel_is_the_same(
    series: tuple[Path, list[Slice]], tmp_path: Path
) -> None:
    folder, slices = series
    face = gone = 0
    for before, after in zip(slices, _released(folder, tmp_path), strict=True):
        changed = after.pixel_array != before.values
        assert not (changed & before.brain).any()
        assert set(np.unique(after.pixel_array[changed])) <= {before.values.min()}
        face += int(before.face.sum())
        gone += int((before.face & changed).sum())
        codes = [code.CodeValue for code in after.DeidentificationMethodCodeSequence]
        assert "113102" in codes
        assert after.RecognizableVisualFeatures == "NO"
    assert gone / face > 0.98


@pytest.mark.parametrize(
    "syntax",
    cases(SYNTAXES, [JPEG2000Lossless], {syntax: syntax.name for syntax in SYNTAXES}),
)
def test_compressed_slices_lose_the_same_pixels(
    series: tuple[Path, list[Slice]], tmp_path: Path, syntax: Any
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "plain").mkdir()
    for path in sorted(series[0].iterdir()):
        ds = dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(tmp_path / "in" / path.name)
    plain = _released(series[0], tmp_path / "plain", 6)
    for one, other in zip(plain, _released(tmp_path / "in", tmp_path, 6), strict=True):
        assert other.file_meta.TransferSyntaxUID == syntax
        assert np.array_equal(one.pixel_array, other.pixel_array)


def test_a_multi_frame_head_loses_the_same_pixels(series: tuple[Path, list[Slice]], tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    enhanced = scans.enhanced(series[1])
    enhanced.save_as(path, enforce_file_format=True)
    outcome = deidentify_file(path, tmp_path / "o", replace(HEAD, faces=Faces.of_paths([path])))
    assert not isinstance(outcome, Quarantined), outcome
    frames = dcmread(tmp_path / "o").pixel_array
    (tmp_path / "plain").mkdir()
    for number, plain in enumerate(_released(series[0], tmp_path / "plain", 6)):
        assert np.array_equal(frames[number * 6], plain.pixel_array)


def test_the_order_of_the_files_decides_about_nothing(
    series: tuple[Path, list[Slice]], tmp_path: Path
) -> None:
    paths = sorted(series[0].iterdir())
    several = [Faces.of_paths(paths), Faces.of_paths(paths[::-1])]
    outcomes = [deidentify_file(paths[8], tmp_path / "o", replace(HEAD, faces=faces)) for faces in several]
    assert outcomes[0] == outcomes[1]
    assert not isinstance(outcomes[0], Quarantined)


def test_an_instance_without_its_series_waits(series: tuple[Path, list[Slice]], tmp_path: Path) -> None:
    path = min(series[0].iterdir())
    for faces in (None, Faces.of_paths([path])):
        outcome = deidentify_file(path, tmp_path / "o", replace(HEAD, faces=faces))
        assert isinstance(outcome, Quarantined)
        assert outcome.reason_code == "face_not_removed"
        assert not (tmp_path / "o").exists()


def _changed(**attributes: Any) -> bytes:
    ds = ct()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return encode(ds)


@pytest.mark.parametrize(
    ("attributes", "waits"),
    [
        ({"BodyPartExamined": "CHEST"}, False),
        ({"BodyPartExamined": "HEART"}, False),
        ({"BodyPartExamined": "KNEE"}, False),
        ({"BodyPartExamined": "HEAD"}, True),
        ({"BodyPartExamined": "NECK"}, True),
        ({"BodyPartExamined": "WHOLEBODY"}, True),
        ({"BodyPartExamined": ""}, True),
        ({"BodyPartExamined": "SPECIAL"}, True),
        ({"BodyPartExamined": "CHEST", "RecognizableVisualFeatures": "YES"}, True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else "+".join(map(str, value.values())) or "none",
)
def test_the_body_part_decides_and_nothing_known_is_taken_for_a_head(
    attributes: dict[str, str], waits: bool
) -> None:
    outcome = deidentify(_changed(**attributes), HEAD)
    if waits:
        assert isinstance(outcome, Quarantined)
        assert outcome.reason_code == "face_not_removed"
        return
    assert not isinstance(outcome, Quarantined)
    content = b"".join(outcome[1])
    assert b"113102" not in content


def test_a_profile_without_the_option_leaves_heads_alone() -> None:
    assert not isinstance(deidentify(_changed(BodyPartExamined="HEAD"), DEFAULT), Quarantined)


def test_the_codes_of_other_regions_name_no_head_and_no_neck() -> None:
    scheme: Any = concepts["SCT"]
    meanings = {code: meaning for names in scheme.values() for code, (meaning, _) in names.items()}
    meanings |= {"181422007": "Prostate"}
    older = mapping["SRT"] | {"T-9200B": "41216001"}
    words = ("head", "neck", "face", "skull", "brain", "orbit", "jaw", "cervical")
    of_the_trunk = {"R-FAB55", "R-FAB56", "R-FAB57"}  # without a successor there
    for code in decision._OTHER_REGIONS - of_the_trunk:
        meaning = meanings[older.get(code, code)].lower()
        assert not any(word in meaning for word in words), (code, meaning)
