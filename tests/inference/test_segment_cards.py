"""Cards of models that mark segments: what is read, what is refused, what a package of one must answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inference.card import FORMAT, SEGMENTS_FORMAT, ModelCard
from inference.errors import PackageError, SessionError
from inference.package import Limits, load_package, write_package
from inference.session import ModelSession
from tests.inference.material import make_card, make_model
from tests.inference.segment_material import (
    GREY,
    SIZE,
    WHITE,
    make_segment_card,
    make_segment_model,
    make_segment_onnx,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from onnx import ModelProto

    from inference.package import Package

VOLUMES, PICTURES = make_segment_card(), make_segment_card(volume=None)


@pytest.mark.parametrize("card", [VOLUMES, PICTURES], ids=["volumes", "pictures"])
def test_a_card_of_segments_survives_bytes_and_says_what_it_answers(card: ModelCard) -> None:
    assert ModelCard.from_bytes(card.to_bytes()) == card
    assert json.loads(card.to_bytes())["format"] == SEGMENTS_FORMAT
    assert card.segmenting
    assert card.answer_shape == (3, *card.input.size)
    assert card.input.size == (SIZE if card is VOLUMES else SIZE[1:])


def test_a_card_of_findings_is_written_as_it_has_always_been() -> None:
    card = make_card()
    content = json.loads(card.to_bytes())
    assert content["format"] == FORMAT == "cloister-model/1"
    assert set(content["input"]) == {"name", "modalities", "sop_classes", "preprocessing"}
    assert set(content["output"]) == {"name", "activation", "findings"}
    assert not card.segmenting
    assert ModelCard.from_bytes(card.to_bytes()) == card


def _segments(*changes: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        known = [GREY.to_json(), WHITE.to_json()]
        card["output"]["segments"] = [{**known[n % 2], **one} for n, one in enumerate(changes)]

    return change


def _field(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        for name in path[:-1]:
            card = card[name]
        card[path[-1]] = value

    return change


def _large(card: dict[str, Any]) -> None:
    card["input"]["preprocessing"].update(rows=2048, columns=2048)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another format": (_field("format", value="cloister-model/4"), "format: expected"),
    "the format of findings": (_field("format", value=FORMAT), "field 'volume' is unknown"),
    "an unknown task": (_field("task", value="detection"), "task: expected"),
    "the task of findings": (_field("task", value="classification-2d"), "expected segments of"),
    "the task of pictures": (_field("task", value="segmentation-2d"), "input.volume"),
    "no volume": (_field("input", "volume", value=None), "input.volume"),
    "a volume that is none": (_field("input", "volume", value=[]), "expected an object"),
    "no slices": (_field("input", "volume", "slices", value=0), "slices: expected 8"),
    "slices that are true": (_field("input", "volume", "slices", value=True), "slices: expected 8"),
    "half a slice": (_field("input", "volume", "slices", value=16.5), "slices: expected 8"),
    "too many slices": (_field("input", "volume", "slices", value=10**9), "slices: expected 8"),
    "spacing of zero": (_field("input", "volume", "spacing_mm", value=[0, 1, 1]), "spacing_mm"),
    "spacing without end": (_field("input", "volume", "spacing_mm", value=[1e9, 1, 1]), "spacing_mm"),
    "two spacings": (_field("input", "volume", "spacing_mm", value=[1, 1]), "spacing_mm"),
    "spacing in words": (_field("input", "volume", "spacing_mm", value=["1", "1", "1"]), "spacing_mm"),
    "other axes": (_field("input", "volume", "axes", value=["foot", "back", "left"]), "axes: expected"),
    "too many voxels": (_large, "at most 16777216 voxels"),
    "a window for a volume": (
        _field("input", "preprocessing", "intensity", value="voi"), "expected percentile",
    ),
    "no segments": (_field("output", "segments", value=[]), "segments: expected 1 to 16"),
    "17 segments": (
        _segments(*({"number": n + 1, "code": f"C{n}"} for n in range(17))), "segment.number: expected 1",
    ),
    "10,000 segments": (_field("output", "segments", value=[{}] * 10_000), "a list of at most 64"),
    "numbers with a gap": (_segments({}, {"number": 3}), "the numbers 1, 2, 3"),
    "a number twice": (_segments({}, {"number": 1}), "the numbers 1, 2, 3"),
    "a number of 2**40": (_segments({}, {"number": 2**40}), "segment.number"),
    "a code twice": (_segments({}, {"code": GREY.code}), "each code once"),
    "a code too long": (_segments({"code": "x" * 17}), "segment.code"),
    "a meaning of control characters": (_segments({"meaning": "\x1b[2J"}), "segment.meaning"),
    "a label that is none": (_segments({"label": None}), "segment.label"),
    "no category": (_segments({"category": None}), "segment.category: expected an object"),
    "a category of one word": (_segments({"category": {"code": "1"}}), "is missing"),
    "findings beside": (_field("output", "findings", value=[]), "field 'findings' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_refused_naming_the_field(name: str) -> None:
    change, message = HOSTILE[name]
    content = json.loads(VOLUMES.to_bytes())
    change(content)
    with pytest.raises(PackageError, match=message) as refused:
        ModelCard.from_bytes(json.dumps(content).encode())
    assert refused.value.code == "card"


@pytest.fixture
def load(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Callable[..., Package]:
    def do(model: ModelProto, card: ModelCard, limits: Limits | None = None) -> Package:
        write_package(tmp_path / "made", model.SerializeToString(), card, signing_key)
        signers = {"site": signing_key.public_key()}
        return load_package(tmp_path / "made", tmp_path / "taken", signers, limits)

    return do


@pytest.mark.parametrize("card", [VOLUMES, PICTURES], ids=["volumes", "pictures"])
def test_a_package_of_segments_is_taken_in_and_answers_shares(
    card: ModelCard, load: Callable[..., Package]
) -> None:
    package = load(make_segment_model(card.input.size), card)
    batch = np.linspace(-2, 2, 2 * int(np.prod(card.input.size)), dtype=np.float32)
    answer = ModelSession(package).run(batch.reshape(2, 1, *card.input.size))
    assert answer.shape == (2, 3, *card.input.size)
    assert np.allclose(answer.sum(axis=1), 1, atol=1e-5)
    assert set(np.unique(answer.argmax(axis=1))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("model", "card", "code"),
    [
        (make_segment_model(last="Identity"), VOLUMES, "session.output"),
        (make_segment_model(last="Sigmoid"), VOLUMES, "session.output"),
        (make_segment_model(scale=(1.0, 2.0), start=(0.0, 0.0)), VOLUMES, "model.output"),
        (make_segment_model((16, 24, 24)), VOLUMES, "model.input"),
        (make_segment_model(SIZE[1:]), VOLUMES, "model.input"),
        (make_segment_model(), PICTURES, "model.input"),
        (make_model(), VOLUMES, "model.input"),
        (make_segment_model(), make_card(), "model.input"),
    ],
    ids=["logits", "sums", "too few classes", "size", "pictures", "volumes", "findings", "a findings' card"],
)  # fmt: skip
def test_a_model_that_is_not_what_its_card_says_is_refused(
    model: ModelProto, card: ModelCard, code: str, load: Callable[..., Package]
) -> None:
    with pytest.raises((PackageError, SessionError)) as refused:
        load(model, card)
    assert refused.value.code == code


def test_an_input_of_another_size_is_refused(load: Callable[..., Package]) -> None:
    session = ModelSession(load(make_segment_model(), VOLUMES))
    for shape in ((1, 1, 16, 24, 15), (1, 1, 24, 16), (1, 2, *SIZE)):
        with pytest.raises(SessionError, match=r"session\.input"):
            session.run(np.zeros(shape, dtype=np.float32))
    with pytest.raises(SessionError, match=r"session\.input"):
        session.run(np.zeros((1, 1, *SIZE), dtype=np.float64))


def test_a_card_of_an_answer_that_no_memory_holds_ends_with_the_limit(
    tmp_path: Path, signing_key: Ed25519PrivateKey
) -> None:
    from inference.preprocessing import PreprocessingSpec  # noqa: PLC0415
    from inference.segments import Segment, VolumeSpec  # noqa: PLC0415

    segments = tuple(Segment(n, f"C{n}", "99TEST", f"m{n}", f"l{n}") for n in range(1, 17))
    card = make_segment_card(
        spec=PreprocessingSpec(rows=256, columns=256), volume=VolumeSpec(256, (1.0,) * 3), segments=segments
    )
    onnx = make_segment_onnx(size=(256, 256, 256), scale=[0.1] * 17, start=[0.0] * 17)
    write_package(tmp_path / "made", onnx, card, signing_key)
    with pytest.raises((PackageError, SessionError)) as refused:
        load_package(
            tmp_path / "made",
            tmp_path / "taken",
            {"s": signing_key.public_key()},
            Limits(memory_bytes=2 << 30),
        )
    assert refused.value.code in ("package.limits", "session.run")
    assert not (tmp_path / "taken").exists()
