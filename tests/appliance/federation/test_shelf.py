from __future__ import annotations

import hashlib
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance.federation.shelf import Carriage, Shelf, in_memory
from tests.appliance.federation.scripted import said
from tests.trainer.federation.plans import make_plan
from trainer.compression import NAMES, Compression, draw_of
from trainer.encryption import Encryption
from trainer.federation import aggregation
from trainer.federation.plan import Bounds, Strategy
from trainer.strategies import STRATEGIES
from trainer.weights_io import Stored, to_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from appliance.federation.answers import Answer

LAYERS, SIZE = 48, 16 * 1024
BOUNDS = Bounds(1e6, 1000)


def model(value: float) -> dict[str, NDArray[Any]]:
    return {f"layer-{n:02d}": np.full(SIZE, value, np.float32) for n in range(LAYERS)}


def shelf_of(folder: Path, job: str = "job", **changes: Any) -> Shelf:
    return Shelf.empty(folder, job, Carriage(make_plan(**changes), 1, model(0.0)))


def kept(folder: Path, count: int) -> list[aggregation.Update]:
    shelf = shelf_of(folder)
    answers = [shelf.keep(said(f"site-{n}", arrays=model(n + 1.0))) for n in range(count)]
    return [aggregation.Update(one.site, one.arrays, 10) for one in answers]


@pytest.mark.parametrize("name", [name for name, rule in STRATEGIES.items() if not rule.one_at_a_time])
def test_updates_on_disk_are_aggregated_as_those_in_memory_are(name: str, tmp_path: Path) -> None:
    updates = kept(tmp_path / "arrived", 5)
    assert all(isinstance(one.delta, Stored) for one in updates)
    in_memory = [aggregation.Update(one.site, dict(one.delta), one.samples) for one in updates]
    results = [
        aggregation.aggregate(model(0.0), {}, some, Strategy(name, {}), 5, BOUNDS)
        for some in (updates, in_memory)
    ]
    assert results[0].judgements == results[1].judgements
    assert to_bytes(results[0].weights) == to_bytes(results[1].weights)
    assert to_bytes(results[0].state) == to_bytes(results[1].state)


def test_the_first_two_stay_in_memory_and_count_as_those_on_disk_do(tmp_path: Path) -> None:
    shelf = Shelf.empty(tmp_path / "arrived", "job", Carriage(make_plan(), 1, model(0.0)), 2)
    answers = [shelf.keep(said(f"site-{n}", arrays=model(n + 1.0))) for n in range(4)]

    assert [isinstance(one.arrays, Stored) for one in answers] == [False, False, True, True]
    assert sorted(path.name for path in shelf.folder.iterdir()) == [
        "site-2.safetensors",
        "site-3.safetensors",
    ]
    for n, one in enumerate(answers):
        assert one.update_sha256 == hashlib.sha256(to_bytes(model(n + 1.0))).hexdigest()
    on_disk = kept(tmp_path / "other", 4)
    results = [
        aggregation.aggregate(model(0.0), {}, some, Strategy("fedavg", {}), 4, BOUNDS)
        for some in ([aggregation.Update(one.site, one.arrays, 10) for one in answers], on_disk)
    ]
    assert results[0].judgements == results[1].judgements
    assert to_bytes(results[0].weights) == to_bytes(results[1].weights)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2),
        ({"strategy": Strategy("swarm", {})}, 0),
        ({"strategy": Strategy("dfedavgm", {})}, 0),
        ({"encryption": Encryption({"north": "a" * 64, "south": "b" * 64})}, 0),
    ],
)
def test_what_is_handed_on_or_encrypted_does_not_stay_in_memory(
    changes: dict[str, Any], expected: int
) -> None:
    assert in_memory(make_plan(**changes)) == expected


def peak(folder: Path, count: int, name: str) -> int:
    updates = kept(folder, count)
    tracemalloc.start()
    try:
        aggregation.aggregate(model(0.0), {}, updates, Strategy(name, {}), count, BOUNDS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["fedavg", "median", "multi-krum"])
def test_four_times_the_sites_take_no_more_memory_than_one_array_of_each(name: str, tmp_path: Path) -> None:
    few, many = peak(tmp_path / "few", 5, name), peak(tmp_path / "many", 20, name)
    array_bytes = SIZE * 8  # in float64
    assert many - few < 15 * 3 * array_bytes
    assert many - few < LAYERS * SIZE * 4 * 3  # three whole updates, where fifteen came


@pytest.mark.parametrize("places", [0, 2])
def test_what_no_weights_file_can_hold_is_a_refusal_of_that_site(tmp_path: Path, places: int) -> None:
    shelf = Shelf.empty(tmp_path / "arrived", "job", Carriage(make_plan(), 1, model(0.0)), places)
    answer = shelf.keep(said("west", arrays={"layer-00": np.array(["text"])}))
    assert (answer.said.code, dict(answer.arrays)) == ("unreadable", {})


def test_a_disk_that_takes_nothing_is_no_fault_of_the_site(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "arrived", "job")
    shelf.clear()
    (tmp_path / "arrived" / "job").write_text("a file where the folder was")
    with pytest.raises(OSError, match="job"):
        shelf.keep(said("west", arrays=model(1.0)))


def test_what_a_killed_job_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    shelf_of(tmp_path / "arrived", "first").keep(said("west", arrays=model(1.0)))
    shelf = shelf_of(tmp_path / "arrived", "second")
    assert [path.name for path in (tmp_path / "arrived").rglob("*")] == ["second"]
    shelf.clear()
    assert list((tmp_path / "arrived").iterdir()) == []


def test_an_answer_without_an_update_stays_as_it_is(tmp_path: Path) -> None:
    answer: Answer = said("west", "not_approved")
    assert shelf_of(tmp_path / "arrived", "job").keep(answer) is answer


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_update_is_unpacked_and_keeps_the_hash_of_what_arrived(name: str, tmp_path: Path) -> None:
    compression = Compression(name)
    seed = draw_of(make_plan().seed, "west", 1)
    packed = compression.pack(model(1.0), {}, 1e6, seed)
    shelf = shelf_of(tmp_path / "arrived", compression=compression)

    answer = shelf.keep(said("west", arrays=packed.arrays))

    assert answer.said.code == ""
    assert to_bytes(answer.arrays) == to_bytes(packed.update)
    assert answer.update_sha256 == hashlib.sha256(to_bytes(packed.arrays)).hexdigest()


def test_what_no_site_packs_is_a_refusal_of_that_site(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "arrived", compression=Compression("top-k"))

    answer = shelf.keep(said("west", arrays=model(1.0)))

    assert (answer.said.code, dict(answer.arrays)) == ("unfit", {})
    assert "packed update" in answer.said.message
