from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from inference.errors import PreprocessingError
from inference.preprocessing import PreprocessingSpec, prepare, prepare_pixels
from inference.resampling import fit, resize
from tests.inference.material import make_instance, radiograph
from tests.shared_data import shared_data_dir

SPEC = PreprocessingSpec(rows=32, columns=32, mean=0.0, standard_deviation=1.0)


def test_input_has_the_shape_and_type_that_a_model_takes() -> None:
    image = prepare(make_instance(), SPEC)
    assert image.shape == (1, 32, 32)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1


def test_the_picture_keeps_its_shape_and_is_centred_on_black() -> None:
    image = prepare(make_instance(radiograph(64, 32)), SPEC)[0]
    assert (image[:, :8] == 0).all()
    assert (image[:, 24:] == 0).all()
    assert (image[:, 8:24] > 0).any(axis=0).all()


def test_pixels_that_are_not_square_are_made_square() -> None:
    flat = prepare(make_instance(radiograph(32, 64), ImagerPixelSpacing=[0.4, 0.2]), SPEC)[0]
    assert np.count_nonzero((flat > 0).any(axis=1)) >= 30
    assert np.count_nonzero((flat > 0).any(axis=0)) >= 30


def test_monochrome1_gives_the_same_input_as_its_inverted_monochrome2() -> None:
    pixels = radiograph()
    first = make_instance(4095 - pixels, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(prepare(first, SPEC), prepare(make_instance(pixels), SPEC), atol=2e-5)


def test_the_rescale_is_applied_before_the_window() -> None:
    spec = PreprocessingSpec(rows=32, columns=32, intensity="voi")
    plain = make_instance(WindowCenter=1500, WindowWidth=2000)
    scaled = make_instance(WindowCenter=2000, WindowWidth=4000, RescaleSlope=2, RescaleIntercept=-1000)
    expected = make_instance(WindowCenter=1500.25, WindowWidth=2000.5)
    assert np.allclose(prepare(scaled, spec), prepare(expected, spec), atol=1e-3)
    assert not np.allclose(
        prepare(scaled, spec), prepare(plain, PreprocessingSpec(rows=32, columns=32)), atol=0.01
    )


def test_the_linear_window_follows_the_standards_formula() -> None:
    pixels = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
    ds = make_instance(pixels, WindowCenter=2048, WindowWidth=1024)
    spec = PreprocessingSpec(rows=64, columns=64, intensity="voi", mean=0.0, standard_deviation=1.0)
    x = pixels[0].astype(float)
    expected = np.clip((x - (2048 - 0.5)) / (1024 - 1) + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    assert np.allclose(prepare(ds, spec)[0][0], expected, atol=1e-4)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions_are_applied(function: str) -> None:
    spec = PreprocessingSpec(rows=32, columns=32, intensity="voi")
    image = prepare(make_instance(WindowCenter=1500, WindowWidth=900, VOILUTFunction=function), spec)
    linear = prepare(make_instance(WindowCenter=1500, WindowWidth=900), spec)
    assert not np.array_equal(image, linear)
    assert np.corrcoef(image.ravel(), linear.ravel())[0, 1] > 0.9


def test_padding_is_black_and_does_not_stretch_the_contrast() -> None:
    pixels = radiograph()
    padded = pixels.copy()
    padded[:10] = 4095
    image = prepare(make_instance(padded, PixelPaddingValue=4095), SPEC)[0]
    assert (image[:4] == 0).all()
    assert image.max() > 0.9


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_every_lossless_transfer_syntax_gives_the_same_input(syntax: str) -> None:
    plain = make_instance()
    compressed = make_instance()
    compressed.compress(syntax)
    assert np.array_equal(prepare(compressed, SPEC), prepare(plain, SPEC))


def test_colour_is_refused_unless_the_model_takes_its_luminance() -> None:
    colour = np.zeros((16, 16, 3), dtype=np.uint8)
    colour[4:12, 4:12] = (0, 255, 0)
    ds = make_instance(
        None, Rows=16, Columns=16, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=colour.tobytes(),
    )  # fmt: skip
    with pytest.raises(PreprocessingError, match=r"pixel\.photometric"):
        prepare(ds, SPEC)
    spec = PreprocessingSpec(rows=16, columns=16, color="luminance", mean=0, standard_deviation=1)
    assert prepare(ds, spec)[0, 8, 8] == 1
    assert prepare(ds, spec)[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"PixelData": None}, "pixel.missing"),
        ({"Rows": None}, "pixel.header"),
        ({"PhotometricInterpretation": None}, "pixel.header"),
        ({"Rows": 0}, "pixel.size"),
        ({"Rows": 65535, "Columns": 65535}, "pixel.size"),
        ({"NumberOfFrames": 2}, "pixel.frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "pixel.photometric"),
        ({"SamplesPerPixel": 3}, "pixel.photometric"),
        ({"PixelData": b"\0\1" * 5}, "pixel.decode"),
        ({"Rows": 4000}, "pixel.decode"),
        ({"BitsAllocated": 13}, "pixel.decode"),
        ({"PixelData": b"\7\0" * 2880}, "pixel.constant"),
        ({"PixelData": b"\7\0" * 2880, "PixelPaddingValue": 7}, "pixel.empty"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "pixel.modality_lut"),
    ],
)
def test_hostile_pixel_data_is_refused_with_a_code(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PreprocessingError) as caught:
        prepare(make_instance(**changes), SPEC)
    assert caught.value.code == code


def test_a_truncated_or_random_codestream_is_refused() -> None:
    ds = make_instance()
    ds.compress(JPEG2000Lossless)
    whole = ds.PixelData
    ds.PixelData = whole[: len(whole) // 3]
    with pytest.raises(PreprocessingError, match=r"pixel\.decode"):
        prepare(ds, SPEC)


@given(garbage=st.binary(min_size=0, max_size=300), syntax=st.sampled_from([RLELossless, JPEG2000Lossless]))
@settings(max_examples=60, deadline=None)
def test_no_garbage_in_the_codestream_raises_anything_else(garbage: bytes, syntax: str) -> None:
    ds = make_instance()
    ds.compress(syntax)
    ds.PixelData = ds.PixelData[:40] + garbage
    try:
        image = prepare(ds, SPEC)
    except PreprocessingError:
        return
    assert np.isfinite(image).all()


def test_a_window_is_demanded_where_the_spec_says_so() -> None:
    spec = PreprocessingSpec(rows=32, columns=32, intensity="voi")
    with pytest.raises(PreprocessingError, match=r"pixel\.voi"):
        prepare(make_instance(), spec)
    with pytest.raises(PreprocessingError, match=r"pixel\.voi"):
        prepare(make_instance(WindowCenter=10, WindowWidth=0), spec)
    either = PreprocessingSpec(rows=32, columns=32, intensity="voi_or_percentile")
    same = PreprocessingSpec(rows=32, columns=32)
    assert np.array_equal(prepare(make_instance(), either), prepare(make_instance(), same))


def test_bare_pixels_and_an_instance_give_the_same_input() -> None:
    assert np.array_equal(prepare_pixels(radiograph(), SPEC), prepare(make_instance(), SPEC))


_HASH = """
import hashlib
from inference.preprocessing import PreprocessingSpec, prepare
from tests.inference.material import make_instance, radiograph
digest = hashlib.sha256()
for size in ((300, 200), (40, 41), (17, 90)):
    digest.update(prepare(make_instance(radiograph(*size)), PreprocessingSpec(rows=64, columns=64)).tobytes())
print(digest.hexdigest())
"""


def test_another_process_with_another_thread_count_makes_the_same_bytes() -> None:
    digests = set()
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _HASH],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_pixels_of_a_known_picture_never_change() -> None:
    spec = PreprocessingSpec(rows=64, columns=64)
    y, x = np.mgrid[0:300, 0:200]
    pixels = (y * y + 37 * x + 5 * y * x) % 4096
    image = prepare(make_instance(pixels.astype(np.uint16)), spec)
    known = "ac55f5cdb45cf06cb8f410755d753deb75725bd56082472071c4167d22378bff"
    assert hashlib.sha256(image.tobytes()).hexdigest() == known


def test_spec_survives_json_and_refuses_what_it_does_not_know() -> None:
    spec = PreprocessingSpec(rows=96, columns=64, intensity="voi", color="luminance")
    assert PreprocessingSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    wrongs: list[Any] = [
        {"rows": 0}, {"rows": "64"}, {"rows": True}, {"size": 64}, {"intensity": "best"},
        {"mean": float("nan")},
        {"standard_deviation": 0}, {"lower_percentile": 60}, {"channels": 3}, {"interpolation": []},
        [],
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(PreprocessingError, match="spec"):
            PreprocessingSpec.from_json(wrong)


@given(
    rows=st.integers(1, 70), columns=st.integers(1, 70), to_rows=st.integers(1, 70),
    to_columns=st.integers(1, 70),
    kernel=st.sampled_from(["box", "triangle"]), level=st.integers(0, 65535),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_resizing_an_even_picture_leaves_it_even(
    rows: int, columns: int, to_rows: int, to_columns: int, kernel: str, level: int
) -> None:
    even = np.full((rows, columns), level, dtype=np.uint16)
    assert (resize(even, to_rows, to_columns, kernel) == level).all()


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from(["box", "triangle"]))
@settings(max_examples=30, deadline=None)
def test_shrinking_keeps_the_mean_and_lets_no_detail_through_unfiltered(
    rows: int, columns: int, kernel: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (rows, columns), dtype=np.uint16)
    small = resize(noise, 10, 10, kernel).astype(float)
    assert abs(small.mean() - noise.mean()) < 4000
    assert small.std() < noise.std()


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 300), st.integers(8, 300), st.floats(0.1, 10)
)
def test_a_fitted_picture_is_as_large_as_the_box_allows(
    rows: int, columns: int, box_rows: int, box_columns: int, aspect: float
) -> None:
    height, width = fit(rows, columns, box_rows, box_columns, aspect)
    assert 1 <= height <= box_rows
    assert 1 <= width <= box_columns
    assert height == box_rows or width == box_columns


@pytest.mark.real_data
def test_vendors_radiographs_become_input() -> None:
    root = shared_data_dir() / "dicom"
    spec = PreprocessingSpec(rows=128, columns=128, intensity="voi_or_percentile")
    for name in (
        "highdicom/data/test_files/dx_image.dcm",
        "pydicom-data/data_store/data/RG3_J2KR.dcm",
        "pydicom-data/data_store/data/RG1_J2KI.dcm",
        "dicom-test-files/data/WG04/JLSL/RG3_JLSL",
    ):
        image = prepare(dcmread(root / name), spec)
        assert np.isfinite(image).all()
        assert image.std() > 0.1


@pytest.mark.real_data
def test_no_file_of_any_vendor_raises_anything_but_a_coded_refusal() -> None:
    root = shared_data_dir() / "dicom"
    spec = PreprocessingSpec(rows=16, columns=16, color="luminance")
    prepared, refused, others = 0, 0, 0
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.stat().st_size > 300_000:
            continue
        ds = dcmread(path, force=True)
        try:
            prepare(ds, spec)
            prepared += 1
        except PreprocessingError as error:
            refused += error.code.startswith("pixel.")
            others += not error.code.startswith("pixel.")
    assert prepared > 100
    assert refused > 100
    assert others == 0
