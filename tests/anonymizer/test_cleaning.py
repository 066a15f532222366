"""The engine's pixel step: ultrasound by its regions, captures and marked images by a profile's leave."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import XRayAngiographicImageStorage

from anonymizer import regions
from anonymizer.engine import Context, Quarantined, deidentify, deidentify_file
from anonymizer.profiles import load_profile
from tests.anonymizer import burnt_text
from tests.anonymizer.material import CONTEXT, DEFAULT, ct, encode, release
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def context(tmp_path: Path, text: str) -> Context:
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\nextends = "research-default"\n{text}\n')
    return Context(CONTEXT.keys, "trial", profile=load_profile(path))


def real(name: str) -> Path:
    return next((shared_data_dir() / "dicom").rglob(name))


def codes(ds: Dataset) -> list[str]:
    return [code.CodeValue for code in ds.DeidentificationMethodCodeSequence]


@pytest.mark.real_data
def test_an_ultrasound_picture_keeps_its_regions_and_loses_what_is_written_around(tmp_path: Path) -> None:
    source, target = real("OBXXXX1A.dcm"), tmp_path / "out.dcm"
    outcome = deidentify_file(source, target, DEFAULT)
    assert not isinstance(outcome, Quarantined), outcome
    before, after = dcmread(source), dcmread(target)
    assert outcome.boxes
    assert "113101" in codes(after)
    first = before.SequenceOfUltrasoundRegions[0]
    assert first.RegionLocationMinY0 >= 60
    old, new = before.pixel_array, after.pixel_array
    assert len(np.unique(new[:50])) == 1
    assert len(np.unique(old[:50])) > 1
    assert (old[100:400, 200:600] == new[100:400, 200:600]).mean() > 0.8


@pytest.mark.real_data
def test_an_ultrasound_picture_of_a_machine_that_staff_drew_is_released_masked(tmp_path: Path) -> None:
    source, target = real("examples_rgb_color.dcm"), tmp_path / "out.dcm"
    before = dcmread(source)
    row = {"modality": "US", "manufacturer": before.Manufacturer, "model": before.ManufacturerModelName}
    row |= {"rows": before.Rows, "columns": before.Columns, "boxes": [[0, 0, 100, 50]], "source": "seen"}
    profile = replace(DEFAULT.profile, regions=regions.parse({"rows": [row]}))
    outcome = deidentify_file(source, target, replace(DEFAULT, profile=profile))
    assert not isinstance(outcome, Quarantined), outcome
    assert len(np.unique(dcmread(target).pixel_array[:50, :100])) == 1


@pytest.mark.real_data
def test_an_ultrasound_picture_without_regions_waits(tmp_path: Path) -> None:
    outcome = deidentify_file(real("examples_rgb_color.dcm"), tmp_path / "out.dcm", DEFAULT)
    assert isinstance(outcome, Quarantined)
    assert outcome.reason_code == "ultrasound_without_regions"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        ({"SOPClassUID": SECONDARY_CAPTURE, "Modality": "OT"}, "secondary_capture"),
    ],
    ids=["burned in", "capture"],
)
def test_what_shows_text_waits_unless_a_profile_lets_it_be_cleaned(
    tmp_path: Path, change: dict[str, str], code: str
) -> None:
    ds = ct(rows=64, columns=64)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    waiting = deidentify(encode(ds), DEFAULT)
    assert isinstance(waiting, Quarantined)
    assert waiting.reason_code == code
    out = release(ds, context(tmp_path, f'release = ["{code}"]')).ds
    assert "113101" in codes(out)
    assert out.get("BurnedInAnnotation", "NO") == "NO"


def test_a_slice_is_not_looked_at_and_does_not_say_so(tmp_path: Path) -> None:
    assert "113101" not in codes(release(ct(), DEFAULT).ds)
    always = context(tmp_path, '[pixels]\ndetect = "always"')
    assert "113101" in codes(release(ct(rows=32, columns=32), always).ds)


def test_a_long_instance_gives_signs_of_life() -> None:
    ds, beats = ct(rows=16, columns=16), []
    ds.SOPClassUID, ds.Modality, ds.NumberOfFrames = XRayAngiographicImageStorage, "XA", "3"
    ds.ImageType, ds.PixelData = ["DERIVED", "SECONDARY"], ds.PixelData * 3
    looking = replace(DEFAULT, beat=lambda: beats.append(1))
    assert not isinstance(deidentify(encode(ds), looking), Quarantined)
    assert len(beats) == 3


@pytest.mark.real_data
def test_a_radiograph_loses_what_can_be_read_in_it_and_nothing_else(tmp_path: Path) -> None:
    ds, values = burnt_text.one_frame("dx_image.dcm")
    ds.PatientID = "MRN-4711"
    values = values.repeat(2, axis=0).repeat(2, axis=1)
    ds.Rows, ds.Columns = values.shape[:2]
    clean, written = tmp_path / "clean.dcm", tmp_path / "written.dcm"
    clean.write_bytes(burnt_text.encoded(ds, values.copy()))
    largest = 2.0 ** int(ds.BitsStored) - 1
    lines = burnt_text.draw(values, Random("dx_image.dcm2"), 6, largest=largest)  # noqa: S311
    written.write_bytes(burnt_text.encoded(ds, values))
    outcomes = [deidentify_file(path, path.with_suffix(".out"), DEFAULT) for path in (clean, written)]
    without, with_text = outcomes
    assert not isinstance(without, Quarantined), without
    assert not isinstance(with_text, Quarantined), with_text
    assert without.boxes == ()
    assert np.array_equal(dcmread(clean).pixel_array, dcmread(clean.with_suffix(".out")).pixel_array)
    shape = (int(ds.Rows), int(ds.Columns))
    hidden = [burnt_text.covered(line.box, list(with_text.boxes), shape) >= 0.8 for line in lines]
    assert sum(hidden) >= len(lines) - 1
    assert "113101" in codes(dcmread(clean.with_suffix(".out")))
