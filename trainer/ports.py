"""What the trainer asks of its surroundings."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work proceeds; the caller renews a lease or draws a bar. It may raise to stop the work."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
    del stage, done, total
