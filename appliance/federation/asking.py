"""How the run's workflow asks sites: tasks go out by the engine, answers are gathered until it is enough."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nvflare.apis.controller_spec import ClientTask, SendOrder, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply

from appliance import logs
from appliance.federation import messages, policy, witness
from appliance.federation.answers import Answer, read_result
from appliance.federation.book import StaleJobError
from appliance.federation.errors import CoordinatorError
from appliance.federation.liveness import Signs

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.signal import Signal
    from nvflare.apis.wf_comm_spec import WFCommSpec

    from appliance.federation.collection import Collection
    from appliance.federation.keykeeper import KeyKeeper

POLL_S: Final = 0.05
AT_ONCE: Final = 2  # of answers that are kept: more would wait for the same disk
MEMBERS_EVERY_S: Final = 1.0
NOT_KEPT: Final = "answer.not_kept"

_LOG = logs.logger(__name__)


class Asking(Controller):  # type: ignore[misc]
    """The engine's controller with our way to gather answers."""

    _members: Callable[[], frozenset[str]]
    _key: KeyKeeper

    def __init__(self) -> None:
        super().__init__(task_check_period=POLL_S)
        self._witness: witness.Witness | None = None
        self._lock = threading.Lock()
        self._signs = Signs()
        self._steps = Signs()
        self._present: frozenset[str] = frozenset()
        self._look_again = 0.0

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Listen to every sign of life that the engine hears of a site's job process."""
        super().set_communicator(communicator)
        engine_notes = communicator.client_is_active

        def noted(client_name: str, reason: str, fl_ctx: FLContext) -> None:
            self._signs.heard(client_name, time.monotonic())
            engine_notes(client_name, reason, fl_ctx)

        communicator.client_is_active = noted

    def _hear_progress(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Renew the lease of a site that comes on with its round."""
        del topic, request
        self._steps.heard(str(fl_ctx.get_peer_context().get_identity_name()), time.monotonic())
        return make_reply(ReturnCode.OK)

    def _ask(
        self,
        name: str,
        data: Shareable | dict[str, Shareable],
        order: messages.Order,
        collection: Collection,
        abort_signal: Signal,
        fl_ctx: FLContext,
        keep: Callable[[Answer], Answer],
    ) -> list[Answer]:
        """Give out one task and gather answers, each as ``keep`` keeps it, until the collection is over.

        ``data`` is for all, or by site for each its own; sites may share one.
        """
        keeping = _Keeping(keep, collection, self._lock)
        if self._witness is not None:
            order = replace(order, ledger=self._witness.offer(collection.targets))
        tasks, said = [], messages.write_order(order)
        for site in sorted(collection.targets):
            one = data if isinstance(data, Shareable) else data[site]
            one[messages.ORDER_KEY] = said
            if self._key.text and name != policy.TASK_LEDGER:
                one[messages.ENCRYPTION_KEY] = self._key.text
            receive = self._receiver(keeping)
            tasks.append(Task(name=name, data=one, result_received_cb=receive))
            # To each by itself, though the arrays are one: what it broadcasts the engine copies first.
            self.send(tasks[-1], fl_ctx, [site], SendOrder.ANY)
        try:
            while not self._is_over(collection):
                if abort_signal.triggered:
                    raise StaleJobError("the job was aborted")
                keeping.check()
                time.sleep(POLL_S)
            for task in tasks:
                self.cancel_task(task, TaskCompletionStatus.OK, fl_ctx)
                task.data = Shareable()
        finally:
            answers = keeping.end()
        still = self._members()  # whoever left or was expelled meanwhile does not count
        counted = [answers[site] for site in sorted(answers) if site in still]
        return counted if self._witness is None else self._witness.judge(name, order, counted)

    def _is_over(self, collection: Collection) -> bool:
        at = time.monotonic()
        gone = {site for site in collection.targets if self.get_client_disconnect_time(site) is not None}
        if at >= self._look_again:
            self._present, self._look_again = self._members(), at + MEMBERS_EVERY_S
        gone |= collection.targets - self._present
        gone |= self._signs.silent(collection.targets, at, collection.started)
        with self._lock:
            collection.lost(gone)
            collection.stalled = self._steps.silent(
                collection.targets, at, collection.started, collection.timeout_s
            )
            return collection.over(at)

    def _receiver(self, keeping: _Keeping) -> Callable[..., None]:
        """Return what takes a site's answer."""

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            del fl_ctx
            if keeping.is_over:
                return
            whole = client_task.task.name in {policy.TASK_AGGREGATE, policy.TASK_SEND}
            answer = read_result(client_task.client.name, client_task.result, whole=whole)
            client_task.result = None
            keeping.take(answer)

        return receive


class _Keeping:
    """Keeps answers as they arrive, several at once: the engine hands over one after the other.

    Raised where the engine hands over, an error would make it drop all later answers.
    """

    def __init__(
        self, keep: Callable[[Answer], Answer], collection: Collection, lock: threading.Lock
    ) -> None:
        self._keep: Callable[[Answer], Answer] | None = keep
        self._collection, self._lock = collection, lock
        self._pool = ThreadPoolExecutor(AT_ONCE, "keeping")
        self._answers: dict[str, Answer] = {}
        self._error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether no answer is taken any more."""
        return self._keep is None

    def take(self, answer: Answer) -> None:
        """Have an answer kept, unless it comes too late."""
        with self._lock:
            if self._keep is not None:
                self._pool.submit(self._kept, answer, self._keep)

    def _kept(self, answer: Answer, keep: Callable[[Answer], Answer]) -> None:
        try:
            answer = keep(answer)
        except Exception as error:  # noqa: BLE001 - raised by check()
            self._error = error
            _LOG.exception(NOT_KEPT, site=answer.site)  # who comes late is in the log alone
            return
        with self._lock:
            if answer.site not in self._answers:
                self._answers[answer.site] = answer
                self._collection.answered(answer.site, time.monotonic(), usable=not answer.said.code)

    def check(self) -> None:
        """Raise what kept an answer from being kept; CoordinatorError for a disk that does not take it."""
        error = self._error
        if isinstance(error, OSError):
            raise CoordinatorError(f"an update could not be kept ({error.strerror})") from error
        if error is not None:
            raise error

    def end(self) -> dict[str, Answer]:
        """Take no answer any more, and return those that were kept.

        Tasks live until garbage is collected, some rounds later: no model may live as long, and what keeps
        answers holds the round's, and the answers their updates.
        """
        with self._lock:
            self._keep = None
        self._pool.shutdown(cancel_futures=True)
        answers, self._answers = self._answers, {}
        return answers


def as_it_is(answer: Answer) -> Answer:
    """Keep an answer in memory."""
    return answer
