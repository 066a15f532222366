"""Which models of finished rounds give way when space runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.db.base import now
from appliance.federation import checkpoints, coordinator, newrun, provision
from appliance.federation.book import Book, Checkpoint
from appliance.federation.errors import CoordinatorError
from tests.appliance.federation.test_newrun import two_sites
from tests.trainer.federation.plans import make_plan
from trainer.networks import initial_weights
from trainer.weights_io import save

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {"weight": np.ones(1000, np.float32)}
SIZE = 4000


def written(runs: Path, run: str, rounds: int) -> list[Path]:
    """Write a run's rounds, each with a strategy's state, as the book does."""
    first = runs / run / "round-00000.safetensors"
    save(first, MODEL)
    state = {"moment": np.zeros(1000, np.float32)}
    paths = [runs / run / f"round-{number:05d}-abcdef12.safetensors" for number in range(1, rounds + 1)]
    return [first, *(checkpoints.write(path, MODEL, state)[0] for path in paths)]


def left(runs: Path) -> dict[str, list[int]]:
    return {
        folder.name: sorted(
            int(path.name[6:11]) for path in folder.glob("*") if not path.name.endswith(".state.safetensors")
        )
        for folder in sorted(runs.iterdir())
    }


def test_with_room_for_ten_models_nothing_gives_way(tmp_path: Path) -> None:
    written(tmp_path, "a", 8)
    checkpoints.make_room(tmp_path, SIZE, lambda _: 10 * SIZE)
    assert left(tmp_path) == {"a": list(range(9))}


def test_the_oldest_rounds_of_any_run_give_way_until_there_is_room_with_what_strategies_remembered(
    tmp_path: Path,
) -> None:
    paths = [*written(tmp_path, "a", 6), *written(tmp_path, "b", 6)]
    files = 2 * (1 + 2 * 6)

    def free(runs: Path) -> int:
        gone = files - sum(1 for _ in runs.glob("*/*"))
        return 7 * SIZE + gone * SIZE  # as much as each file takes

    checkpoints.make_room(tmp_path, SIZE, free)

    assert left(tmp_path) == {"a": [0, 3, 4, 5, 6], "b": list(range(7))}
    for path in paths:
        if path.is_file() and "00000" not in path.name:
            assert path.with_suffix(".state.safetensors").is_file()


def test_a_run_s_first_model_and_newest_rounds_stay_however_little_is_free(tmp_path: Path) -> None:
    written(tmp_path, "a", 9)
    written(tmp_path, "b", 2)
    checkpoints.make_room(tmp_path, SIZE, lambda _: 0)
    assert left(tmp_path) == {"a": [0, 6, 7, 8, 9], "b": [0, 1, 2]}
    assert all(path.suffix == ".safetensors" for path in (tmp_path / "a").iterdir())
    assert len(list((tmp_path / "a").iterdir())) == 1 + 2 * 4


def test_a_run_goes_on_from_its_newest_round_and_none_starts_from_one_that_gave_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = tmp_path / "coordinator", tmp_path / "plan.json"
    two_sites(root)
    plan = make_plan(run_id="earlier", min_sites=2)
    book = coordinator.open_book(provision.load(root))
    book.add_run(plan, initial_weights(plan.task, 5))
    book.set_job("earlier", "job-a")
    hashes = [finished(book) for _ in range(6)]

    monkeypatch.setattr(checkpoints, "_ROOM_FOR", 10**12)  # no disk has that
    last = finished(book)

    assert book.checkpoint("earlier").model_sha256 == last
    for digest, words in (
        (hashes[0], "removed to make room"),
        ("0" * 64, "expected the model of a finished"),
    ):
        path.write_text(make_plan(run_id="later", min_sites=2, initial_sha256=digest).dumps())
        with pytest.raises(CoordinatorError, match=words):
            newrun.add(root, path)
    path.write_text(make_plan(run_id="later", min_sites=2, initial_sha256=hashes[-1]).dumps())
    assert newrun.add(root, path) == "later"


def finished(book: Book) -> str:
    """Finish a round on the last one; return its model's hash."""
    standing = book.checkpoint("earlier")
    weights = {
        name: array + array.dtype.type(1) if array.dtype.kind == "f" else array
        for name, array in standing.weights.items()
    }
    reached = Checkpoint(standing.number + 1, weights, {}, "")
    return book.finish_round("earlier", "job-a", reached, [], now()).model_sha256
