"""What differs too much from what a model of anomalies makes of it is marked, and becomes DICOM results."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pytest
from pydicom.uid import ComprehensiveSRStorage

from inference.card import RESIDUAL_FORMAT, ModelCard
from inference.deviations import DEVIATION, NO_FINDING
from inference.errors import PackageError, SessionError
from inference.package import load_package, open_package, write_package
from inference.preprocessing import PreprocessingSpec
from inference.results import marked_picture, picture
from inference.results.colors import color_of
from inference.results.context import Predecessor
from inference.results.measured import DIFFERS, MEANING
from inference.session import ModelSession
from inference.study import build_segment_results, segment_study
from inference.volumes import read_volume
from tests.inference.deviation_material import (
    GREY_THRESHOLD,
    SIZE,
    SPEC,
    THRESHOLD,
    make_deviation_card,
    make_deviation_onnx,
)
from tests.inference.material import make_instance, radiograph
from tests.inference.segment_material import OBLIQUE, context_of, made
from tests.trainer import masked
from trainer.segmentation.masks import read_mask
from trainer.segmentation.spec import Segment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray
    from PIL import ImageDraw
    from pydicom import Dataset

    from tests.inference.conftest import IODChecker

CARD = make_deviation_card()
MARKED = (Segment(DEVIATION.code, DEVIATION.scheme, DEVIATION.meaning),)
WHITE = 4000


@pytest.fixture
def deviating(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Callable[..., ModelSession]:
    def do(card: ModelCard = CARD) -> ModelSession:
        folder = tmp_path / "package"
        rows, columns = card.input.size
        write_package(folder, make_deviation_onnx(size=(rows, columns)), card, signing_key)
        return ModelSession(open_package(folder, {"site": signing_key.public_key()}))

    return do


def slices(count: int = 6, shape: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Grey slices, each with a white and a black pixel, half of them with a light square; what is light."""
    image = np.full((count, *shape), WHITE // 2, dtype=np.uint16)
    square = np.zeros(image.shape, dtype=np.bool_)
    square[: count // 2, shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = True
    image[square] = WHITE * 9 // 10
    image[:, 0, 0], image[:, -1, -1] = WHITE, 0
    return image, square | (image == WHITE)


def exact(**changes: Any) -> ModelCard:
    """The card of a model for which black and white are the darkest and the lightest pixel."""
    return make_deviation_card(spec=replace(SPEC, lower_percentile=0, upper_percentile=100, **changes))


def groups_of(report: Dataset) -> tuple[list[Any], list[Any]]:
    content = hd.sr.ComprehensiveSR.from_dataset(report).content
    return content.get_volumetric_roi_measurement_groups(), content.get_image_measurement_groups()


def test_a_card_survives_bytes_and_says_how_the_threshold_was_found() -> None:
    content = json.loads(CARD.to_bytes())
    assert ModelCard.from_bytes(CARD.to_bytes()) == CARD
    assert (content["format"], content["task"]) == (RESIDUAL_FORMAT, "anomaly-2d")
    assert content["output"]["threshold"] == {
        "value": 2.8,
        "healthy_share": 0.98,
        "pictures": 12,
        "people": 3,
        "source": "quantile of the pixels of healthy held-out pictures of the site",
    }
    (segment,) = content["output"]["segments"]
    assert (segment["code"], segment["category"]["code"]) == ("DEVIATION", "309825002")
    assert (CARD.segmenting, CARD.answer_shape) == (True, (1, *SIZE))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "cloister-model/2", "field 'threshold' is unknown"),
        (("format",), ["cloister-model/3"], "format: expected"),
        (("task",), "segmentation-2d", "threshold: expected one of anomaly-2d"),
        (("output", "threshold"), None, "expected an object"),
        (("output", "threshold", "value"), 0, "threshold.value"),
        (("output", "threshold", "value"), True, "threshold.value"),
        (("output", "threshold", "healthy_share"), 1, "healthy_share"),
        (("output", "threshold", "people"), 0, "pictures and people"),
        (("output", "threshold", "pictures"), 2, "pictures and people"),
        (("output", "threshold", "source"), "the test cases", "threshold.source"),
        (("output", "segments"), [], "segments: expected 1"),
        (("output", "segments"), [DEVIATION.to_json(), {**DEVIATION.to_json(), "number": 2, "code": "X"}],
         "one beside a threshold"),
    ],
)  # fmt: skip
def test_a_hostile_card_is_refused_naming_the_field(
    path: tuple[str, ...], value: object, message: str
) -> None:
    content = place = json.loads(CARD.to_bytes())
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(PackageError, match=message) as refused:
        ModelCard.from_bytes(json.dumps(content).encode())
    assert refused.value.code == "card"


@pytest.mark.parametrize(
    ("changes", "refused_with"),
    [({}, None), ({"black": 1.0}, "session.output"), ({"size": (16, 24)}, "model.input")],
    ids=["differences", "what the model makes of it", "another size"],
)
def test_a_package_is_taken_in_only_if_it_answers_differences(
    changes: dict[str, Any], refused_with: str | None, tmp_path: Path, signing_key: Ed25519PrivateKey
) -> None:
    write_package(tmp_path / "made", make_deviation_onnx(**changes), CARD, signing_key)
    signers = {"site": signing_key.public_key()}
    if refused_with is None:
        session = ModelSession(load_package(tmp_path / "made", tmp_path / "taken", signers))
        x = np.linspace(-2, 2, 2 * int(np.prod(SIZE)), dtype=np.float32).reshape(2, 1, *SIZE)
        assert np.allclose(session.run(x), x + 2, atol=1e-6)
        return
    with pytest.raises((PackageError, SessionError)) as refused:
        load_package(tmp_path / "made", tmp_path / "taken", signers)
    assert refused.value.code == refused_with


@pytest.mark.parametrize(
    "options", [{}, {"orientation": OBLIQUE, "spacing_mm": (3.0, 0.5, 0.5)}], ids=["axial", "oblique"]
)
def test_slices_of_a_series_make_a_segmentation_and_a_report_of_volume_and_scores(
    options: dict[str, Any], tmp_path: Path, deviating: Callable[..., ModelSession]
) -> None:
    image, expected = slices()
    sources = masked.series(image, "P-7", **options)
    mixed = list(np.random.default_rng(2).permutation(np.array(sources)))
    context, found = made(deviating(exact()), tmp_path, mixed)
    assert {kind: len(made) for kind, made in found.items()} == {"seg": 1, "sr": 1, "sc": 1}
    (segmentation,) = found["seg"]
    read = read_mask(segmentation, read_volume(sources).planes, MARKED)
    assert np.array_equal(read > 0, expected)
    (group,), others = groups_of(found["sr"][0])
    assert others == []
    values = {
        (item.name.value, None if item.derivation is None else item.derivation.meaning): (
            item.value,
            item.unit.value,
        )
        for item in group.get_measurements()
    }
    millilitres = expected.sum() * np.prod(options.get("spacing_mm", (1.0, 1.0, 1.0))) / 1000
    shares = image[expected] / WHITE
    assert values["118565006", None] == (pytest.approx(millilitres, abs=5e-4), "mL")
    assert values["DIFFERENCE", "Maximum"] == (pytest.approx(100), "%")
    assert values["DIFFERENCE", "Mean"] == (pytest.approx(100 * shares.mean(), abs=0.02), "%")
    assert context.grey_threshold == pytest.approx(GREY_THRESHOLD)


def test_all_results_say_that_a_mark_is_a_difference_and_no_finding(
    tmp_path: Path, deviating: Callable[..., ModelSession]
) -> None:
    _, found = made(deviating(exact()), tmp_path, masked.series(slices()[0], "P-7"))
    (segmentation,), (report,) = found["seg"], found["sr"]
    (segment,) = segmentation.SegmentSequence
    (category,) = segment.SegmentedPropertyCategoryCodeSequence
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("309825002", "SCT")
    assert (kind.CodeValue, kind.CodeMeaning) == ("DEVIATION", "Differs from what the model learnt as normal")
    assert NO_FINDING in segment.SegmentDescription
    assert "no finding" in segmentation.ContentDescription
    parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert "threshold=2.8" in parameters
    assert "healthy_share=0.98" in parameters
    (group,), _ = groups_of(report)
    (said,) = group.get_qualitative_evaluations(MEANING)
    assert said.value == DIFFERS
    assert group.finding_type.value == "DEVIATION"
    assert "threshold=2.8" in report.to_json()
    for ds in (segmentation, report, found["sc"][0]):
        assert "RESEARCH USE ONLY" in ds.SeriesDescription


def test_the_capture_says_so_in_full_and_shows_how_far_marked_pixels_differ(
    tmp_path: Path, deviating: Callable[..., ModelSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    genuine = picture.fitted

    def noted(draw: ImageDraw.ImageDraw, text: str, *rest: Any) -> str:
        written.append(genuine(draw, text, *rest))
        return written[-1]

    for module in (marked_picture, picture):
        monkeypatch.setattr(module, "fitted", noted)
    context, found = made(deviating(exact()), tmp_path, masked.series(slices()[0], "P-7"))
    assert DEVIATION.label in written
    assert marked_picture.NO_FINDING in written
    mean = context.marked[0].score
    assert mean is not None
    assert f"More than 70.0 % of black to white; highest 100.0 %, mean {100 * mean.mean:.1f} %" in written
    assert not any("…" in text for text in written)
    pixels = found["sc"][0].pixel_array
    assert (pixels == color_of(DEVIATION)).all(axis=2).any()


def test_where_nothing_differs_the_segmentation_is_empty_and_the_report_has_no_score(
    tmp_path: Path, deviating: Callable[..., ModelSession]
) -> None:
    session = deviating(make_deviation_card(threshold=replace(THRESHOLD, value=5.0)))
    context, found = made(session, tmp_path, masked.series(slices()[0], "P-7"))
    assert context.marked[0].score is None
    assert not found["seg"][0].pixel_array.any()
    (group,), _ = groups_of(found["sr"][0])
    assert [item.value for item in group.get_measurements()] == [0]


def test_slices_with_a_gap_are_marked_and_have_no_volume(
    tmp_path: Path, deviating: Callable[..., ModelSession]
) -> None:
    image, expected = slices()
    sources = masked.series(image, "P-7")
    del sources[2]
    context, found = made(deviating(exact()), tmp_path, sources)
    assert context.marked[0].labels.sum() == np.delete(expected, 2, axis=0).sum()
    volumes, (group,) = groups_of(found["sr"][0])
    assert volumes == []
    assert {item.name.value for item in group.get_measurements()} == {"DIFFERENCE"}
    named = {item.referenced_sop_instance_uid for item in group.source_images}
    assert named == {source.SOPInstanceUID for source in sources}


@pytest.mark.parametrize("shape", [(48, 32), (30, 90), (12, 8)])
def test_what_differs_is_marked_on_the_picture_s_own_pixels(
    shape: tuple[int, int], tmp_path: Path, deviating: Callable[..., ModelSession]
) -> None:
    image, expected = slices(2, shape)
    context, _ = made(deviating(exact()), tmp_path, masked.series(image, "P-7"))
    found = context.marked[0].labels[0] > 0
    assert found.shape == shape
    common = 2 * (found & expected[0]).sum() / (found.sum() + expected[0].sum())
    assert common > 0.8


@pytest.mark.dicom3tools
@pytest.mark.parametrize("name", ["volume", "oblique", "a gap", "one slice", "empty", "projection", "lossy"])
def test_results_pass_the_iod_checker_and_a_retry_makes_the_same(
    name: str, tmp_path: Path, deviating: Callable[..., ModelSession], iod_checker: IODChecker
) -> None:
    options: dict[str, Any] = {"orientation": OBLIQUE} if name == "oblique" else {}
    sources = masked.series(slices()[0], "P-7", **options)
    sources = {"a gap": [*sources[:2], *sources[3:]], "one slice": sources[:1]}.get(name, sources)
    card = exact() if name != "empty" else make_deviation_card(threshold=replace(THRESHOLD, value=5.0))
    if name == "projection":
        spec = PreprocessingSpec(rows=48, columns=32)
        card, sources = (
            make_deviation_card(modalities=("DX",), spec=spec),
            [make_instance(radiograph(33, 44))],
        )
    if name == "lossy":
        for ds in sources:
            ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "8.0"
            ds.LossyImageCompressionMethod = "ISO_10918_1"
    session = deviating(card)
    paths = masked.save(tmp_path / "study", sources)
    previous = Predecessor(sources[0].StudyInstanceUID, "1.2.3", ComprehensiveSRStorage, "1.2.3.4")
    written: list[list[bytes]] = []
    for again in range(2):
        context = context_of(session, segment_study(session, paths, lambda: None), predecessors=(previous,))
        written.append([])
        for kind, ds in build_segment_results(context):
            path = tmp_path / f"{kind}-{again}.dcm"
            ds.save_as(path, enforce_file_format=True)
            assert iod_checker.errors(path) == []
            written[-1].append(path.read_bytes())
    assert len(written[0]) == 3
    assert written[0] == written[1]
