"""The places of receivers: those of one alone, and those that several processes share."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from appliance import places as shared
from appliance.places import PlacesError, SharedPlaces
from dicom_node.limits import TOO_MANY_ASSOCIATIONS, TOO_MANY_OF_CALLER, LocalPlaces, NoPlaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dicom_node.ports import Places

# Enters as many places as it is told, says so, and waits to be killed; or enters and leaves without end.
OTHER = """
import sys, time
from pathlib import Path
from appliance.places import SharedPlaces
places = SharedPlaces(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    places.enter("CT1", 0, 0)
print("entered", flush=True)
while sys.argv[3] == "busy":
    places.leave(places.enter("CT1", 0, 0))
    places.pause_s("CT1", 6000)
time.sleep(60)
"""


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "shared"])
def places(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Places]:
    if request.param == "local":
        yield LocalPlaces(clock)
        return
    opened = SharedPlaces(tmp_path / "places", clock)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that share the places, until the test ends."""
    running: list[subprocess.Popen[str]] = []

    def start(count: int, way: str = "waits") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OTHER, str(tmp_path / "places"), str(count), way]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout is not None
        assert running[-1].stdout.readline() == "entered\n"
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def full(places: Places, title: str, max_of_caller: int, max_in_all: int = 0) -> str:
    with pytest.raises(NoPlaceError) as caught:
        places.enter(title, max_of_caller, max_in_all)
    return caught.value.reason


def test_a_caller_has_no_more_places_than_it_may_and_all_no_more_than_there_are(places: Places) -> None:
    taken = [places.enter("CT1", 2, 3) for _ in range(2)]
    assert full(places, "CT1", 2, 3) == TOO_MANY_OF_CALLER
    taken.append(places.enter("MR1", 2, 3))
    assert full(places, "US1", 0, 3) == TOO_MANY_ASSOCIATIONS
    assert len(set(taken)) == 3
    places.leave(taken[0])
    taken[0] = places.enter("CT1", 2, 3)
    for place in taken:
        places.leave(place)
    assert [places.enter("CT1", 0, 3) for _ in range(3)]


@pytest.mark.parametrize(("per_minute", "count", "seconds"), [(60, 100, 90), (600, 1000, 90), (1, 3, 120)])
def test_a_rate_lets_a_short_burst_pass(
    places: Places, clock: Clock, per_minute: int, count: int, seconds: float
) -> None:
    for _ in range(count):
        clock.now += places.pause_s("CT1", per_minute)
    assert clock.now - 1000 == pytest.approx(seconds, abs=1.5)
    assert places.pause_s("MR1", per_minute) == 0


def test_threads_take_each_place_once(places: Places) -> None:
    taken: list[int] = []

    def enter() -> None:
        while True:
            try:
                taken.append(places.enter("CT1", 0, 200))
            except NoPlaceError:
                return

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == len(set(taken)) == 200


def test_processes_count_together_and_a_killed_one_counts_no_more(
    tmp_path: Path, other: Callable[..., subprocess.Popen[str]]
) -> None:
    mine = SharedPlaces(tmp_path / "places")
    mine.enter("CT1", 0, 0)
    first, second = other(3), other(2)
    assert full(mine, "CT1", 6) == TOO_MANY_OF_CALLER
    assert full(mine, "MR1", 0, 6) == TOO_MANY_ASSOCIATIONS
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert [mine.enter("CT1", 6, 0) for _ in range(3)]
    assert full(mine, "CT1", 6) == TOO_MANY_OF_CALLER
    second.send_signal(signal.SIGKILL)
    second.wait(10)
    other(1)
    assert mine.enter("CT1", 6, 0)
    assert full(mine, "CT1", 6) == TOO_MANY_OF_CALLER
    mine.close()


def test_processes_share_a_rate(tmp_path: Path, clock: Clock) -> None:
    one, two = (SharedPlaces(tmp_path / "places", clock) for _ in range(2))
    for number in range(100):
        clock.now += (one, two)[number % 2].pause_s("CT1", 60)
    assert clock.now - 1000 == pytest.approx(90, abs=1.5)


def test_processes_that_are_killed_at_their_work_leave_all_places_free(
    tmp_path: Path, other: Callable[..., subprocess.Popen[str]]
) -> None:
    mine = SharedPlaces(tmp_path / "places")
    for process in [other(0, "busy") for _ in range(4)]:
        for _ in range(50):
            mine.leave(mine.enter("CT1", 10, 10))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert mine.pause_s("MR1", 6000) == 0
    taken = [mine.enter("CT1", 10, 10) for _ in range(10)]
    assert len(set(taken)) == 10
    assert full(mine, "CT1", 10) == TOO_MANY_OF_CALLER
    mine.close()


def test_a_receiver_that_is_stopped_at_its_work_stops_no_other(
    tmp_path: Path, other: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the table and does not go on is told of; once it is killed, all goes on."""
    monkeypatch.setattr(shared, "_WAIT_S", 0.2)
    mine = SharedPlaces(tmp_path / "places")
    busy = other(0, "busy")
    for _ in range(1000):
        busy.send_signal(signal.SIGSTOP)
        try:
            mine.leave(mine.enter("CT1", 0, 0))
        except PlacesError:
            break
        busy.send_signal(signal.SIGCONT)
    else:
        pytest.fail("it never had the table when it was stopped")
    busy.kill()
    busy.wait(10)
    mine.leave(mine.enter("CT1", 1, 1))
    mine.close()


def test_the_rates_of_an_earlier_boot_are_forgotten(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SharedPlaces(tmp_path / "places", clock)
    for _ in range(500):
        before.pause_s("CT1", 1)
    before.close()
    clock.now = 5.0
    boot = tmp_path / "boot"
    boot.write_text("another\n")
    monkeypatch.setattr(shared, "_BOOT", boot)
    assert SharedPlaces(tmp_path / "places", clock).pause_s("CT1", 1) == 0


def test_more_callers_than_are_remembered_forget_the_one_that_was_silent_longest(
    tmp_path: Path, clock: Clock
) -> None:
    mine = SharedPlaces(tmp_path / "places", clock)
    for number in range(600):
        clock.now += 1
        for _ in range(11):
            mine.pause_s(f"CT{number}", 60)
    assert mine.pause_s("CT599", 60) > 0
    assert mine.pause_s("CT0", 60) == 0
