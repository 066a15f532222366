"""Where text is in a picture: detector and reader of ``rapidocr-onnxruntime``, whose models come with it.

What is read is counted and forgotten, so that it can be neither logged nor stored. The library, OpenCV and
ONNX Runtime are imported with the first picture.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anonymizer.errors import StopError

if TYPE_CHECKING:
    from anonymizer.frames import Array

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

_LIBRARY: Final = "rapidocr_onnxruntime"
_MODEL, _READER = "ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"
_MAX_ENLARGEMENT: Final = 8.0
_STEP: Final = 32  # the network halves its input five times
_AROUND: Final = 2  # pixels
_UPRIGHT: Final = 1.5  # height by width
_SURE: Final = 0.5
_LETTERS: Final = 2  # one alone marks a side


def _model(name: str) -> str:
    found = find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise StopError("text_detection_missing", f"text in pixels: expected {_LIBRARY} to be installed")
    return str(Path(found.origin).parent / "models" / name)


@lru_cache(maxsize=1)
def _detector() -> Any:
    path = _model(_MODEL)
    from rapidocr_onnxruntime.ch_ppocr_det import TextDetector  # noqa: PLC0415 - heavy, for the first picture

    return TextDetector(
        {
            "model_path": path,
            "limit_type": "min",
            "limit_side_len": _STEP,  # pictures come in the size that is wanted
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "thresh": 0.3,
            "box_thresh": 0.6,
            "unclip_ratio": 1.6,
            "use_dilation": True,
            "score_mode": "fast",
            "max_candidates": 1000,
            "intra_op_num_threads": 1,  # instances are worked on side by side
            "inter_op_num_threads": 1,
        }
    )


@lru_cache(maxsize=1)
def _reader() -> Any:
    path = _model(_READER)
    from rapidocr_onnxruntime.ch_ppocr_rec import TextRecognizer  # noqa: PLC0415 - as above

    return TextRecognizer(
        {
            "model_path": path,
            "rec_img_shape": [3, 48, 320],
            "rec_batch_num": 1,
            "intra_op_num_threads": 1,
            "inter_op_num_threads": 1,
        }
    )


def is_readable(picture: Array, rectangle: Rectangle) -> bool:
    """Tell whether at least two letters or digits can be read in a part of a picture.

    Bones and vessels that the detector takes for text cannot. Scripts that the model was not trained on, such
    as Arabic, are read as other letters, or not at all.

    Parameters
    ----------
    picture : ndarray
        8-bit colours, shape (rows, columns, 3).
    rectangle : tuple
        A line of text; one that is higher than wide is read upwards.

    Raises
    ------
    StopError
        Code ``text_detection_missing`` without the library.
    """
    left, top, right, bottom = (int(edge) for edge in rectangle)
    part = picture[max(top - _AROUND, 0) : bottom + _AROUND, max(left - _AROUND, 0) : right + _AROUND]
    if not part.size:
        return False
    if part.shape[0] > _UPRIGHT * part.shape[1]:
        part = np.rot90(part)
    ((text, score),), _ = _reader()([np.ascontiguousarray(part)])
    return bool(score >= _SURE) and sum(letter.isalnum() for letter in text) >= _LETTERS


def find_text(picture: Array, long_side: int) -> list[Rectangle]:
    """Return where a picture shows text; rectangles may overlap.

    Parameters
    ----------
    picture : ndarray
        8-bit colours, shape (rows, columns, 3).
    long_side : int
        The size in pixels at which the picture is searched, unless that enlarges it more than eightfold.
        Letters of 10 to 60 pixels at that size are found best.

    Raises
    ------
    StopError
        Code ``text_detection_missing`` without the library.
    """
    detector = _detector()
    import cv2  # noqa: PLC0415 - heavy, for the first picture

    scale = min(long_side / max(picture.shape[:2]), _MAX_ENLARGEMENT)
    size = [max(round(side * scale / _STEP), 1) * _STEP for side in picture.shape[:2]]
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    corners, _ = detector(cv2.resize(picture, (size[1], size[0]), interpolation=kind))
    across, down = picture.shape[1] / size[1], picture.shape[0] / size[0]
    found: list[Rectangle] = []
    for four in np.asarray(corners if corners is not None else []).reshape(-1, 4, 2):
        (left, top), (right, bottom) = four.min(axis=0), four.max(axis=0)
        found.append((left * across, top * down, right * across, bottom * down))
    return found
