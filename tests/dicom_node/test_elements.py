from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node import elements
from dicom_node.errors import HeaderError
from dicom_node.index import read_header
from tests.dicom_node.support import ct, encoded, save
from tests.dicom_node.test_index import data_offset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

WANTED = frozenset({0x00080018, 0x00100010, 0x00100020, 0x0020000D})


def nested() -> Dataset:
    ds = ct(size=4, PixelData=encapsulate([b"\xff\xd8one\xff\xd9", b"\xff\xd8two\xff\xd9"]))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    inner = Dataset()
    inner.CodeValue = "1"
    inner.is_undefined_length_sequence_item = True
    ds.ReferencedImageSequence = Sequence([inner, inner])
    ds["ReferencedImageSequence"].is_undefined_length = True
    return ds


def outcome(walk: Callable[[], dict[int, bytes]]) -> dict[int, bytes] | str:
    try:
        return walk()
    except HeaderError as error:
        return error.code


def in_pieces(data: bytes, size: int) -> Callable[[], bytes]:
    pieces = iter([data[start : start + size] for start in range(0, len(data), size)])
    return lambda: next(pieces, b"")


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 200),
    cut=st.floats(0, 1),
    change=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    tail=st.sampled_from([b"", bytes(1), bytes(40), bytes(4095), bytes(4096)]),
)
def test_a_data_set_that_comes_in_pieces_reads_as_the_whole_one(
    size: int, cut: float, change: tuple[float, int], tail: bytes
) -> None:
    whole = bytearray(encoded(nested()))
    whole[int(change[0] * len(whole))] = change[1]
    data = bytes(whole)[: max(1, int(cut * len(whole)))] + tail
    encoding = elements.Encoding(implicit=False)
    at_once = outcome(lambda: elements.scan(data, 0, encoding, WANTED))
    piecewise = outcome(lambda: elements.scan(b"", 0, encoding, WANTED, in_pieces(data, size)))
    assert piecewise == at_once


def test_fragments_count_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "MAX_STEPS", 1000)
    fragments = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 600 + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + fragments
    encoding = elements.Encoding(implicit=False)
    assert elements.scan(pixels, 0, encoding, WANTED) == {}
    assert outcome(lambda: elements.scan(pixels * 2, 0, encoding, WANTED)) == "too_complex"


def test_a_data_set_that_inflates_a_thousandfold_takes_neither_memory_nor_disk(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    squeeze = zlib.compressobj(9, wbits=-15)
    long_value = struct.pack("<HH2sHI", 0x7FE1, 0x0010, b"UN", 0, 200 << 20)
    parts = [squeeze.compress(encoded(ct(PatientID="0815")) + long_value)]
    parts += [squeeze.compress(bytes(1 << 20)) for _ in range(200)]
    parts += [squeeze.compress(struct.pack("<HH2sH", 0x7FE3, 0x0010, b"LO", 2) + b"x "), squeeze.flush()]
    path.write_bytes(path.read_bytes()[: data_offset(path)] + b"".join(parts))
    before = set(tmp_path.iterdir())
    tracemalloc.start()
    try:
        assert read_header(path).patient_id == "0815"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert set(tmp_path.iterdir()) == before
