"""Figures over several processes: nothing is lost with one, nothing counts down, nothing counts twice."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from appliance import figures
from appliance.figures import ASSOCIATIONS, DIMSE_SECONDS, FIGURES, RECEIVE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "cloister.rules.yml"


@pytest.fixture(autouse=True)
def _new_book() -> Iterator[None]:
    figures._BOOK.forget()
    yield
    figures._BOOK.forget()


class _Collected(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        return figures.families(figures.collected(self._folder))


def text(folder: Path) -> str:
    registry = CollectorRegistry()
    registry.register(_Collected(folder))
    return generate_latest(registry).decode()


def in_child(work: Callable[[], None], *, killed: bool = False) -> int:
    """Run in a forked process that ends, or is killed; return its number once it is gone."""
    pid = os.fork()
    if pid == 0:
        work()
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_values_stand_in_their_buckets(tmp_path: Path) -> None:
    for value in (0.001, 0.005, 0.2, 1000.0):
        figures.observe(RECEIVE_SECONDS, value)
    figures.flush(tmp_path)
    shown = text(tmp_path)
    assert 'cloister_receive_seconds_bucket{le="0.005"} 2.0' in shown
    assert 'cloister_receive_seconds_bucket{le="0.25"} 3.0' in shown
    assert 'cloister_receive_seconds_bucket{le="60.0"} 3.0' in shown
    assert 'cloister_receive_seconds_bucket{le="+Inf"} 4.0' in shown
    assert "cloister_receive_seconds_count 4.0" in shown
    assert re.search(r"cloister_receive_seconds_sum 1000\.206", shown)


def test_processes_add_up_and_a_child_does_not_count_what_its_parent_did(tmp_path: Path) -> None:
    def work() -> None:
        figures.observe(ASSOCIATIONS, 1, "accepted")
        figures.flush(tmp_path)

    work()
    in_child(work)
    in_child(work, killed=True)
    assert 'cloister_associations_total{outcome="accepted"} 3.0' in text(tmp_path)


def test_what_processes_counted_that_are_gone_is_folded_once(tmp_path: Path) -> None:
    def work() -> None:
        figures.observe(ASSOCIATIONS, 1, "accepted")
        figures.flush(tmp_path)

    work()
    for _ in range(3):
        in_child(work)
    assert figures.fold(tmp_path) == 3
    assert figures.fold(tmp_path) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2
    in_child(work)
    assert 'cloister_associations_total{outcome="accepted"} 5.0' in text(tmp_path)


def test_a_crash_while_folding_counts_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        figures.observe(ASSOCIATIONS, 1, "accepted")
        figures.flush(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    in_child(work)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            figures.fold(tmp_path)
    assert 'outcome="accepted"} 1.0' in text(tmp_path)
    in_child(work)
    figures.fold(tmp_path)
    assert 'outcome="accepted"} 2.0' in text(tmp_path)


def test_nothing_counts_down_while_files_are_folded(tmp_path: Path) -> None:
    def work() -> None:
        figures.observe(ASSOCIATIONS, 1, "accepted")
        figures.flush(tmp_path)

    for _ in range(20):
        in_child(work)
    done = threading.Event()

    def fold() -> None:
        figures.fold(tmp_path)
        done.set()

    folding = threading.Thread(target=fold)
    folding.start()
    while True:
        last = done.is_set()
        assert figures.collected(tmp_path)["cloister_associations_total", ("accepted",)] == [20.0]
        if last:
            break
    folding.join()


def test_labels_are_bounded(tmp_path: Path) -> None:
    for number in range(figures.MAX_SERIES + 50):
        figures.observe(DIMSE_SECONDS, 0.1, f"X{number}")
    figures.flush(tmp_path)
    found = figures.collected(tmp_path)
    assert len(found) == figures.MAX_SERIES + 1
    assert found["cloister_dimse_seconds", (figures.OTHERS,)][-1] == pytest.approx(5.0)


def test_a_disk_that_takes_nothing_and_files_of_others_disturb_nobody(tmp_path: Path) -> None:
    figures.observe(ASSOCIATIONS, 1, "accepted")
    blocked = tmp_path / "file"
    blocked.write_text("no folder", encoding="utf-8")
    figures.flush(blocked)
    (tmp_path / "1-a.json").write_text("{", encoding="utf-8")
    (tmp_path / "2-b.json").write_text('{"series": [["cloister_unknown", [], [1]]]}', encoding="utf-8")
    figures.flush(tmp_path)
    assert 'outcome="accepted"} 1.0' in text(tmp_path)


def test_every_figure_has_a_name_with_its_unit_and_bounds_that_rise() -> None:
    for figure in FIGURES:
        assert figure.name.endswith(("_seconds", "_bytes") if figure.bounds else "_total")
        assert list(figure.bounds) == sorted(set(figure.bounds))


def test_the_documentation_names_every_figure() -> None:
    documented = (RULES.parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for figure in FIGURES:
        labels = "".join(f"`{label}`" for label in figure.labels).replace("``", "`, `")
        assert f"| `{figure.name}` | {labels} |" in documented


def test_alert_rules_are_whole() -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        assert {"alert", "expr", "labels", "annotations"} <= set(rule)
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
