"""A PACS: sends a folder of studies to a node, over the network, as another process.

``python -m appliance.demo.pacs FOLDER --calling-ae-title AE --called-ae-title AE --host HOST --port PORT``
writes one JSON line after each batch and ends with 0 when every instance was taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dicom_node.scu import Destination, echo, store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.scu import StoreOutcome

BATCH: Final = 20
KNOWN_WITHIN_S: Final = 15.0


@dataclass(frozen=True)
class Sent:
    """How far sending has come; ``reasons`` counts refusals."""

    sent: int
    failed: int
    total: int
    reasons: dict[str, int]


def send(
    paths: Sequence[Path], destination: Destination, calling_ae_title: str, batch: int = BATCH
) -> Iterator[Sent]:
    """Send files in associations of ``batch`` instances; yield after each."""
    sent, failed = 0, 0
    reasons: dict[str, int] = {}
    for start in range(0, len(paths), batch):
        outcomes: list[StoreOutcome] = store(paths[start : start + batch], destination, calling_ae_title)
        for outcome in outcomes:
            if outcome.ok:
                sent += 1
            else:
                failed += 1
                reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
        yield Sent(sent, failed, len(paths), dict(reasons))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; 0 when every instance was taken, else 1."""
    parser = argparse.ArgumentParser(prog="appliance.demo.pacs")
    parser.add_argument("folder", type=Path, help="a folder, read with its subfolders, or one file")
    parser.add_argument("--calling-ae-title", required=True)
    parser.add_argument("--called-ae-title", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--list", type=Path, help="send only the files named in this file, one path a line")
    arguments = parser.parse_args(argv)
    paths = _paths(arguments.folder, arguments.list)
    destination = Destination(arguments.called_ae_title, arguments.host, arguments.port)
    if not _is_known(destination, arguments.calling_ae_title):
        sys.stderr.write("the node does not answer a C-ECHO of this PACS\n")
        return 1
    last = Sent(0, 0, len(paths), {})
    for last in send(paths, destination, arguments.calling_ae_title):
        sys.stdout.write(json.dumps(vars(last)) + "\n")
        sys.stdout.flush()
    return 0 if last.total and last.sent == last.total else 1


def _is_known(destination: Destination, calling_ae_title: str) -> bool:
    """Ask until the node answers: it learns about a new peer within a second or two."""
    deadline = time.monotonic() + KNOWN_WITHIN_S
    while not echo(destination, calling_ae_title).ok:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def _paths(folder: Path, listing: Path | None) -> list[Path]:
    if listing is not None:
        return [Path(line) for line in listing.read_text(encoding="utf-8").splitlines() if line]
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
