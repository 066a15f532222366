"""The run's workflow without an engine: the test says what the sites answer, the book is real."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nvflare.apis.signal import Signal

from appliance.federation import messages, policy
from appliance.federation.answers import Answer
from appliance.federation.controller import RunWorkflow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.federation.book import Book
    from appliance.federation.collection import Collection

Script = dict[str, "Callable[[str, messages.Order, Mapping[str, Any]], Answer | None]"]


@dataclass
class Sites:
    """The engine's list of connected sites."""

    names: tuple[str, ...]

    def get_clients(self) -> list[SimpleNamespace]:
        """Return them as the engine does."""
        return [SimpleNamespace(name=name) for name in self.names]


class ScriptedWorkflow(RunWorkflow):
    """Answers come from a function per task; ``asked`` records which site was asked what.

    ``members`` are the federation's sites, ``sites`` those that are connected.
    """

    def __init__(
        self,
        book: Book,
        run_id: str,
        job_id: str,
        script: Script,
        sites: tuple[str, ...],
        members: tuple[str, ...] = ("north", "south", "west"),
    ) -> None:
        super().__init__(run_id)
        self._book, self._job_id, self._silent = book, job_id, frozenset()
        self._engine, self._members = Sites(sites), lambda: frozenset(members)
        self._script = script
        self.asked: list[tuple[str, str]] = []
        self.panics: list[str] = []

    def work(self) -> None:
        """Do what the engine lets a job do."""
        self._book.set_job(self._run_id, self._job_id)
        self.control_flow(Signal(), None)

    def system_panic(self, reason: str, fl_ctx: Any) -> None:
        """Keep the reason instead of ending the engine's job."""
        del fl_ctx
        self.panics.append(reason)

    def _ask(
        self,
        name: str,
        data: Any,
        order: messages.Order,
        collection: Collection,
        abort_signal: Any,
        fl_ctx: Any,
        keep: Callable[[Answer], Answer],
    ) -> list[Answer]:
        del abort_signal, fl_ctx
        answers = []
        for site in sorted(collection.targets):
            self.asked.append((name, site))
            answer = self._script[name](site, order, data)
            if answer is not None:
                answers.append(keep(answer))
                collection.answered(site, time.monotonic(), usable=not answer.said.code)
        return answers


def said(site: str, code: str = "", samples: int = 10, arrays: dict[str, Any] | None = None) -> Answer:
    """Return a site's answer."""
    return Answer(site, messages.SiteAnswer(code, "", samples, {}, 0.0, "", ""), arrays or {})


def everyone_admits() -> Script:
    """Return a script in which every site admits, trains by one and takes the final model."""
    return {
        policy.TASK_ADMIT: lambda site, *_: said(site, samples=0),
        policy.TASK_TRAIN: lambda site, *_: said(site),
        policy.TASK_FINALIZE: lambda site, *_: said(site),
    }
