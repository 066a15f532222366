"""Fixtures of the DICOM node's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dicom_node.inbox import Inbox
from tests.dicom_node.authority import Authority
from tests.dicom_node.support import Everybody, RunningSCP, start_scp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    """Give an empty inbox."""
    return Inbox(tmp_path / "inbox", min_free_bytes=1 << 20)


@pytest.fixture
def run_scp(inbox: Inbox) -> Iterator[Callable[..., RunningSCP]]:
    """Start SCPs that end with the test."""
    running: list[RunningSCP] = []

    def start(policy: Everybody | None = None, into: Inbox | None = None, **config: Any) -> RunningSCP:
        running.append(start_scp(into or inbox, policy, **config))
        return running[-1]

    yield start
    for one in running:
        one.scp.stop()


@pytest.fixture
def scp(run_scp: Callable[..., RunningSCP]) -> RunningSCP:
    """Give a running SCP that knows everybody but EVIL."""
    return run_scp(Everybody("EVIL"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Give a certificate authority."""
    folder = tmp_path / "ca"
    folder.mkdir()
    return Authority(folder)
