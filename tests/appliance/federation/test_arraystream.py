"""Arrays between the engine's processes: over its real cells and TCP, honest and hostile."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from nvflare.fuel.f3.streaming.download_service import ProduceRC

from appliance.federation import arraystream
from appliance.federation.arraystream import ArrayStream, Gathering, Piece
from tests.appliance.federation import probe_arrays
from trainer.errors import WeightsError
from trainer.weights_io import to_bytes

WEIGHTS: dict[str, Any] = {"a": np.arange(40, dtype=np.float32), "b": np.ones((2, 3)), "n": np.array(7)}


def probe(way: str, mebibytes: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.appliance.federation.probe_arrays", way, str(mebibytes)]
    output = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    [line] = [line for line in output.splitlines() if line.startswith("{")]
    return dict(json.loads(line))


@pytest.mark.parametrize("mebibytes", [1, 40])
def test_arrays_of_all_forms_arrive_as_they_were_sent_in_both_directions(mebibytes: int) -> None:
    found = probe(probe_arrays.OWN, mebibytes)
    assert (found["there"], found["back"]) == ("same", "same")


@pytest.fixture(scope="module")
def spoilt() -> dict[str, Any]:
    """What became of each spoilt message between the same two ends, and of a whole one after them."""
    return probe(probe_arrays.ALL_SPOILT, 1)


@pytest.mark.parametrize("way", sorted(probe_arrays.SPOILT))
def test_what_cannot_be_read_arrives_as_no_arrays_and_ends_no_process(
    spoilt: dict[str, Any], way: str
) -> None:
    assert spoilt[way]["there"] == "refused: dtype"


def test_after_all_that_cannot_be_read_arrays_arrive_as_before(spoilt: dict[str, Any]) -> None:
    assert spoilt[probe_arrays.OWN] == {"there": "same", "back": "same"}


def test_any_size_of_piece_carries_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_bytes(WEIGHTS)
    for size in (1, 7, 64, len(whole) - 1, len(whole), len(whole) + 1):
        monkeypatch.setattr(arraystream, "PIECE_BYTES", size)
        stream, gathering, sent = ArrayStream(WEIGHTS), Gathering(), b""
        state: dict[str, Any] = {}
        while (produced := stream.produce(state, "north"))[0] == ProduceRC.OK:
            _, [piece], state = produced
            assert 0 < len(piece) <= size
            sent += piece.content
            gathering.consume("ref", state, [piece])
        gathering.download_completed("ref")

        assert produced == (ProduceRC.EOF, None, {})
        assert sent == whole
        assert gathering.arrays.keys() == WEIGHTS.keys()
        assert all(np.array_equal(gathering.arrays[name], array) for name, array in WEIGHTS.items())


@pytest.mark.parametrize(
    "state", [{"first": -1}, {"first": 10**9}, {"first": True}, {"first": "0"}, {"other": 1}]
)
def test_a_receiver_that_asks_for_nonsense_gets_nothing(state: dict[str, Any]) -> None:
    assert ArrayStream(WEIGHTS).produce(state, "north") == (ProduceRC.ERROR, None, {})


def test_a_stream_that_was_let_go_gives_nothing() -> None:
    stream = ArrayStream(WEIGHTS)
    stream.release()
    assert stream.produce({}, "north")[0] == ProduceRC.ERROR


def test_a_stream_that_ends_early_is_none() -> None:
    gathering = Gathering()
    gathering.consume("ref", {"first": 4, "total": 8}, [Piece(b"1234")])
    with pytest.raises(WeightsError, match="fewer bytes"):
        gathering.download_completed("ref")
    assert gathering.is_broken
    assert gathering.arrays == {}
