"""What the person at the terminal sees: headings, what happens, progress, what was measured."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Bars:
    """Progress bars of one stage, one for each name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def show(self, name: str, done: int, total: int) -> None:
        """Show how far something has come; the first call makes its bar."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


class Screen:
    """Tells the story on a console.

    Parameters
    ----------
    console : Console, optional
        Standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def heading(self, number: int, total: int, title: str) -> None:
        """Begin a stage."""
        self.console.print()
        self.console.rule(f"[bold]{number}/{total}  {title}", align="left")

    def say(self, text: str) -> None:
        """Tell what happens."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def bars(self) -> Iterator[Bars]:
        """Show progress bars while a part of a stage runs."""
        columns = (
            TextColumn("  {task.description:<28}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            yield Bars(progress)

    def measured(self, seconds: float, figures: Mapping[str, Any]) -> None:
        """End a stage with what was measured in it."""
        table = Table.grid(padding=(0, 2))
        for name, value in figures.items():
            table.add_row(f"  [cyan]{name}", f"[bold]{_text(value)}")
        self.console.print(table)
        self.console.print(f"  [dim]{seconds:.1f} s")

    def failed(self, title: str, why: str, logs: str) -> None:
        """Say which stage failed, why, and where to look."""
        self.console.print(f"\n[bold red]Failed:[/] {title}", soft_wrap=True)
        self.console.print(why, markup=False, soft_wrap=True)
        self.console.print(f"The logs are in {logs}", markup=False, soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
