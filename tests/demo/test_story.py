from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from appliance.demo import story
from appliance.demo.crew import Crew
from appliance.demo.screen import Screen
from appliance.demo.stages_federation import judge, margins
from appliance.demo.stages_result import check_results
from appliance.demo.world import Deadline, Options, Site, StageError, World
from appliance.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def _screen() -> tuple[Screen, io.StringIO]:
    text = io.StringIO()
    return Screen(Console(file=text, width=200)), text


def _world(tmp_path: Path, *, drawn: bool = True) -> World:
    options = Options(tmp_path, 1) if drawn else Options(tmp_path, 1, tmp_path, tmp_path)
    world = World(options, Crew(tmp_path / "logs"), _screen()[0])
    for index, name in enumerate("ab"):
        settings = Settings(data_root=tmp_path / name)
        world.sites.append(Site(index, name, name, name, name, tmp_path / name, settings))
    return world


def _works(world: World, deadline: Deadline) -> dict[str, Any]:
    del world, deadline
    return {"done": 1}


def test_a_failed_stage_is_named_with_its_reason_and_where_the_logs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(world: World, deadline: Deadline) -> dict[str, Any]:
        raise StageError("the cable is out")

    monkeypatch.setattr(story, "STAGES", (story.Stage("send", "Sending", "It sends.", 5, fails),))
    screen, text = _screen()
    told = story.tell(screen=screen, seed=1, once=True, keep=False, folder=tmp_path / "all")
    assert not told.ok
    assert told.figures["failed_stage"] == "send"
    assert "the cable is out" in text.getvalue()
    assert str(tmp_path / "all" / "logs") in text.getvalue()
    assert (tmp_path / "all").is_dir()


def test_a_stage_that_waits_too_long_ends_with_what_it_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(world: World, deadline: Deadline) -> dict[str, Any]:
        world.until(deadline, "the moon is full", lambda: False)
        return {}

    monkeypatch.setattr(story, "STAGES", (story.Stage("wait", "Waiting", "It waits.", 0.5, waits),))
    screen, text = _screen()
    assert not story.tell(screen=screen, seed=1, once=True, keep=False, folder=tmp_path / "all").ok
    assert "the moon is full: not within" in text.getvalue()


def test_when_all_went_well_the_folder_is_removed_unless_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        story,
        "STAGES",
        (story.Stage("work", "Working", "It works.", 5, _works),),
    )
    for keep in (True, False):
        told = story.tell(screen=_screen()[0], seed=1, once=True, keep=keep, folder=tmp_path / f"all-{keep}")
        assert told.ok
        assert told.folder.is_dir() is keep
        assert told.figures["peak_pss_mib"] > 0


def test_figures_are_written_whole(tmp_path: Path) -> None:
    story.write_json(tmp_path / "f.json", {"ok": True})
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {"ok": True}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


AUC: dict[str, dict[str, float | None]] = {
    "global": {"a": 0.9, "b": 0.95},
    "a": {"a": 0.99, "b": 0.80},
    "b": {"a": 0.85, "b": 0.9},
}


def test_margins_compare_at_the_other_sites_only() -> None:
    assert margins(AUC, ["a", "b"]) == {"a": 0.15, "b": 0.05}


def test_a_local_model_as_good_as_the_global_one_fails_the_demonstration(tmp_path: Path) -> None:
    judge(_world(tmp_path), AUC)
    weak: dict[str, dict[str, float | None]] = {**AUC, "b": {"a": 0.895, "b": 0.9}}
    with pytest.raises(StageError, match=r"not better by .* of b"):
        judge(_world(tmp_path), weak)


def test_with_own_studies_margins_are_reported_not_judged(tmp_path: Path) -> None:
    world = _world(tmp_path, drawn=False)
    judge(world, {**AUC, "b": {"a": 0.99, "b": None}})
    assert world.figures["margins"]["b"] == -0.09
    assert world.figures["pooled_auc"] is None
    assert world.figures["margin_required"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": "other"}, "another patient"),
        ({"study_instance_uid": "1.2"}, "another patient or study"),
        ({"problem": "the picture is empty"}, "cannot show"),
        ({"referenced": []}, "refers to no instance"),
        ({"probabilities": []}, "no structured report"),
    ],
)
def test_results_that_a_reader_could_not_use_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    from appliance.demo.cohorts import CohortStudy  # noqa: PLC0415

    study = CohortStudy((tmp_path,), "p1", "", "1.2.3", 1, releasable=True, planted=frozenset())
    good = {
        "patient_id": "p1",
        "study_instance_uid": "1.2.3",
        "problem": "",
        "referenced": ["1.2.3.4"],
        "modality": "SR",
        "probabilities": [0.5],
    }
    check_results([good], study)
    with pytest.raises(StageError, match=message):
        check_results([{**good, **change}], study)


class _AsksWhenDestroyed:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # the handler runs here, where its exception is lost


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_ends_the_story_even_if_python_loses_the_first_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    def works_on(world: World, deadline: Deadline) -> dict[str, Any]:
        del world
        _AsksWhenDestroyed()
        deadline.until("nothing", lambda: False)
        return {}

    monkeypatch.setattr(story, "STAGES", (story.Stage("wait", "Waiting", "It waits.", 30, works_on),))
    screen, text = _screen()
    before = signal.getsignal(signal.SIGINT)
    told = story.tell(screen=screen, seed=1, once=True, keep=False, folder=tmp_path / "all")

    assert [one.exc_type for one in lost] == [story.Interrupted]
    assert "Ending everything" in text.getvalue()
    assert not told.ok
    assert told.figures["failed_stage"] is None
    assert not (tmp_path / "all").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_while_things_end_signals_do_nothing() -> None:
    def asked(signals: story.EndingSignals) -> None:
        with signals.heeded():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with story.EndingSignals() as signals:
        with pytest.raises(story.Interrupted):
            asked(signals)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5 * story.EndingSignals.AGAIN_S)
