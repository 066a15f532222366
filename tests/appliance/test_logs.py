from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog

from appliance import logs
from appliance.errors import ApplianceError
from appliance.settings import LoggingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

PLANTED = ("DOE^JANE", "PAT-4711", "1.2.840.113619.2.55.3.604688", "19671224")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    root = logging.getLogger()
    configured = structlog.get_config()
    handlers, level = root.handlers[:], root.level
    hook = sys.excepthook
    logs.setup(LoggingSettings(level="DEBUG"), "test")
    yield capsys
    root.handlers[:], root.level = handlers, level
    sys.excepthook = hook
    logging.captureWarnings(capture=False)
    structlog.configure(**configured)


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def fail_with(value: str) -> None:
    raise ValueError(f"bad value {value}")


def test_an_event_is_one_line_of_json(lines: pytest.CaptureFixture[str]) -> None:
    structlog.stdlib.get_logger("appliance.test").info("study.assembled", study_id="a" * 32, instances=3)
    (event,) = events(lines)
    assert event.pop("at")
    assert event == {
        "event": "study.assembled",
        "study_id": "a" * 32,
        "instances": 3,
        "level": "info",
        "process": "test",
    }


def test_no_planted_value_reaches_the_log_whoever_speaks_it(lines: pytest.CaptureFixture[str]) -> None:
    own = structlog.stdlib.get_logger("appliance.test")
    for value in PLANTED:
        try:
            fail_with(value)
        except ValueError as error:
            own.exception("work.failed", row_id="b" * 32)
            own.error("work.failed", exc_info=error)
            logging.getLogger("pynetdicom.acse").exception("refused %s", value)
            logging.getLogger("celery.app.trace").exception("Task raised %r", value)
            logging.getLogger("celery.worker.consumer").exception("lost")
            sys.excepthook(type(error), error, error.__traceback__)
        for name in (
            "pynetdicom.assoc",
            "pydicom",
            "highdicom",
            "sqlalchemy.engine",
            "uvicorn.access",
            "root.x",
        ):
            logging.getLogger(name).error("value %s in a record", value)
            logging.getLogger(name).error(f"value {value}")  # noqa: G004 - as libraries do
        warnings.warn(f"Invalid value for VR UI: {value!r}", stacklevel=1)
    text = lines.readouterr().err
    assert text.count("\n") >= 40
    assert [value for value in PLANTED if value in text] == []


def test_an_error_is_logged_by_class_and_place(lines: pytest.CaptureFixture[str]) -> None:
    try:
        fail_with("DOE^JANE")
    except ValueError:
        structlog.stdlib.get_logger("appliance.test").exception("work.failed")
    (event,) = events(lines)
    assert event["error"] == "ValueError"
    assert "test_logs.py" in str(event["frames"])


def test_our_own_errors_keep_their_message(lines: pytest.CaptureFixture[str]) -> None:
    error = ApplianceError("the disk is full")
    structlog.stdlib.get_logger("appliance.test").error("work.failed", exc_info=error)
    assert events(lines)[0]["error"] == "ApplianceError: the disk is full"


def test_of_other_libraries_stays_who_spoke_and_where(lines: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("pydicom").warning("something")
    logging.getLogger("celery.apps.worker").info("ready")
    withheld, kept = events(lines)
    assert withheld["logger"] == "pydicom"
    assert "text" not in withheld
    assert kept["text"] == "ready"


def test_a_process_that_never_set_up_its_logs_shows_no_values_either() -> None:
    program = (
        "from appliance import logs\n"
        "try:\n    raise ValueError('DOE^JANE')\n"
        "except ValueError:\n    logs.logger('appliance.x').exception('work.failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "work.failed" in done.stderr
    assert "DOE^JANE" not in done.stderr + done.stdout


def test_plain_logs_are_for_people(capsys: pytest.CaptureFixture[str], lines: object) -> None:
    logs.setup(LoggingSettings(format="plain"), "test")
    structlog.stdlib.get_logger("appliance.plain").info("study.assembled", instances=3)
    assert "study.assembled" in capsys.readouterr().err
