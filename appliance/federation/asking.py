"""How the run's workflow asks sites: tasks go out by the engine, answers are gathered until it is enough."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nvflare.apis.controller_spec import ClientTask, SendOrder, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply

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
MEMBERS_EVERY_S: Final = 1.0


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
        answers: dict[str, Answer] = {}
        keeping = [keep]
        self._disk: OSError | None = None
        if self._witness is not None:
            order = replace(order, ledger=self._witness.offer(collection.targets))
        tasks, said = [], messages.write_order(order)
        for site in sorted(collection.targets):
            one = data if isinstance(data, Shareable) else data[site]
            one[messages.ORDER_KEY] = said
            if self._key.text and name != policy.TASK_LEDGER:
                one[messages.ENCRYPTION_KEY] = self._key.text
            receive = self._receiver(answers, collection, keeping)
            tasks.append(Task(name=name, data=one, result_received_cb=receive))
            # To each by itself, though the arrays are one: what it broadcasts the engine copies first.
            self.send(tasks[-1], fl_ctx, [site], SendOrder.ANY)
        while not self._is_over(collection):
            if abort_signal.triggered:
                raise StaleJobError("the job was aborted")
            if self._disk is not None:
                raise CoordinatorError(f"an update could not be kept ({self._disk.strerror})") from self._disk
            time.sleep(POLL_S)
        for task in tasks:
            self.cancel_task(task, TaskCompletionStatus.OK, fl_ctx)
            task.data = Shareable()
        # Tasks live until garbage is collected, some rounds later: no model may live as long.
        keeping.clear()
        still = self._members()  # whoever left or was expelled meanwhile does not count
        with self._lock:
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

    def _receiver(
        self, answers: dict[str, Answer], collection: Collection, keeping: list[Callable[[Answer], Answer]]
    ) -> Callable[..., None]:
        """Return what takes a site's answer for as long as ``keeping`` says how one is kept."""

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            del fl_ctx
            found = tuple(keeping)
            if not found:
                return
            [keep] = found
            whole = client_task.task.name in {policy.TASK_AGGREGATE, policy.TASK_SEND}
            answer = read_result(client_task.client.name, client_task.result, whole=whole)
            client_task.result = None
            try:
                answer = keep(answer)
            except OSError as error:  # raised here, the engine would drop all later answers
                self._disk = error
                return
            with self._lock:
                if answer.site not in answers:
                    answers[answer.site] = answer
                    collection.answered(answer.site, time.monotonic(), usable=not answer.said.code)

        return receive


def as_it_is(answer: Answer) -> Answer:
    """Keep an answer in memory."""
    return answer
