from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.errors import SessionError
from inference.package import Package, open_package, write_package
from inference.session import ModelSession
from tests.inference.material import EDGE, EFFUSION, PNEUMONIA, make_card, make_endless_model, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from onnx import ModelProto

    from inference.card import ModelCard


@pytest.fixture
def opened(tmp_path: Path, signing_key: Ed25519PrivateKey) -> object:
    def do(model: ModelProto, card: ModelCard) -> Package:
        write_package(tmp_path / "p", model.SerializeToString(), card, signing_key)
        return open_package(tmp_path / "p", {"site": signing_key.public_key()})

    return do


def _batch(count: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(0, 1, (count, 1, EDGE, EDGE)).astype(np.float32)


def test_probabilities_are_those_of_the_model(package: Package) -> None:
    batch = _batch()
    expected = 1 / (1 + np.exp(-0.02 * batch.reshape(3, -1).sum(axis=1, dtype=np.float64)))
    assert np.allclose(ModelSession(package).run(batch)[:, 0], expected, atol=1e-5)


def test_each_finding_has_a_column_and_logits_become_probabilities(opened: object) -> None:
    card = make_card(findings=(PNEUMONIA, EFFUSION), activation="sigmoid")
    model = make_model(findings=2, sigmoid=False, gain=1000.0)
    package = opened(model, card)  # type: ignore[operator]
    answer = ModelSession(package).run(_batch(5))
    assert answer.shape == (5, 2)
    assert np.isfinite(answer).all()
    assert ((answer >= 0) & (answer <= 1)).all()


def test_the_same_input_gives_the_same_bytes_each_time_and_with_more_threads(package: Package) -> None:
    batch = _batch(8)
    first = ModelSession(package).run(batch)
    assert np.array_equal(ModelSession(package).run(batch), first)
    assert np.allclose(ModelSession(package, threads=2).run(batch), first, atol=1e-6)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 1, EDGE, EDGE), dtype=np.float64),
        np.zeros((1, EDGE, EDGE), dtype=np.float32),
        np.zeros((1, 1, EDGE, EDGE + 1), dtype=np.float32),
    ],
)
def test_input_of_another_shape_or_type_is_refused(
    package: Package, batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with pytest.raises(SessionError, match=r"session\.input"):
        ModelSession(package).run(batch)


def test_an_answer_that_is_no_probability_is_refused(opened: object) -> None:
    package = opened(make_model(sigmoid=False, bias=9.0), make_card())  # type: ignore[operator]
    with pytest.raises(SessionError, match=r"session\.output"):
        ModelSession(package).run(_batch())


def test_a_model_that_does_not_end_is_stopped(opened: object) -> None:
    session = ModelSession(opened(make_endless_model(), make_card()), timeout_s=0.5)  # type: ignore[operator]
    with pytest.raises(SessionError, match=r"session\.timeout"):
        session.run(_batch())


def test_a_file_that_is_no_model_is_refused(package: Package) -> None:
    package.model_path.write_bytes(b"nonsense")
    with pytest.raises(SessionError, match=r"session\.load"):
        ModelSession(package)
