"""C-ECHO in a child process: the web process carries no DICOM network library for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from appliance.errors import ApplianceError

TIMEOUT_S: Final = 10.0


class EchoError(ApplianceError):
    """A peer did not answer as it should; the message says how."""


def echo(ae_title: str, host: str, port: int, calling_ae_title: str) -> float:
    """Ask a peer whether it hears us (PS3.7 9.1.5).

    Returns
    -------
    float
        Seconds from the association request to the answer.

    Raises
    ------
    EchoError
        If it did not answer with success.
    """
    argv = [sys.executable, "-m", __name__, ae_title, host, str(port), calling_ae_title]
    try:
        ended = subprocess.run(argv, capture_output=True, timeout=2 * TIMEOUT_S, check=True)
        answer = json.loads(ended.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise EchoError("the check itself failed") from error
    if not answer["ok"]:
        raise EchoError(str(answer["reason"]))
    return float(answer["round_trip_s"])


def _main(ae_title: str, host: str, port: str, calling_ae_title: str) -> None:
    from dicom_node import scu  # noqa: PLC0415 - only in the child

    destination = scu.Destination(ae_title=ae_title, host=host, port=int(port), timeout_s=TIMEOUT_S)
    outcome = scu.echo(destination, calling_ae_title)
    answer = {"ok": outcome.ok, "reason": outcome.reason, "round_trip_s": outcome.round_trip_s}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:5])
