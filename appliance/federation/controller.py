"""The engine's workflow of one job of a run: continue from the book's last finished round to the end.

It runs in the engine's server job process. A dead site neither stops a round nor falsifies it: a round counts
with ``min_sites`` checked updates, each of them trained on this round's model. Where one site trains at a
time, a round counts with that one's update, and whoever gives none is passed over.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.consortium.offers import BROKEN
from appliance.db.base import now
from appliance.errors import ApplianceError
from appliance.federation import leading, members, messages, policy, progress, provision, witness
from appliance.federation.answers import FINAL_CODES, Answer, read_result, silent, to_counted
from appliance.federation.book import WAITING, Checkpoint, StaleJobError, open_book
from appliance.federation.collection import MOST_LEASES, Collection
from appliance.federation.errors import CoordinatorError
from appliance.federation.keykeeper import KeyKeeper
from appliance.federation.late import Late
from appliance.federation.liveness import Signs
from appliance.federation.shelf import Carriage, Shelf
from trainer import strategies
from trainer.errors import TrainerError
from trainer.federation import aggregation
from trainer.federation.errors import AggregationError
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nvflare.apis.client import Client
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.signal import Signal
    from nvflare.apis.wf_comm_spec import WFCommSpec

    from trainer.federation.plan import Plan

POLL_S: Final = 0.05
GRACE_S: Final = 5.0
ROUNDS_PER_JOB: Final = 10
CURRENT_WAIT_S: Final = 30.0
CIRCULATE_S: Final = 20.0
MEMBERS_EVERY_S: Final = 1.0


class NotAdmittedError(CoordinatorError):
    """So many sites refused the plan that no other attempt makes sense before people have spoken."""


class RunWorkflow(Controller):  # type: ignore[misc]
    """Workflow of a run's job; the run's id is its only argument."""

    def __init__(self, run_id: str) -> None:
        super().__init__(task_check_period=POLL_S)
        self._run_id = run_id
        self._witness: witness.Witness | None = None
        self._lock = threading.Lock()
        self._signs = Signs()
        self._late: Late | None = None
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

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the book."""
        self._book = open_book(provision.load(Path(os.environ[policy.ROOT_VARIABLE])))
        self._members: Callable[[], frozenset[str]] = partial(members.active, self._book.engine)
        self._job_id = str(fl_ctx.get_job_id())
        self._silent: frozenset[str] = frozenset()
        self._witness = witness.of_book(self._book)
        self._engine.register_aux_message_handler(policy.TOPIC_PROGRESS, self._hear_progress)

    def _hear_progress(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Renew the lease of a site that comes on with its round."""
        del topic, request
        self._steps.heard(str(fl_ctx.get_peer_context().get_identity_name()), time.monotonic())
        return make_reply(ReturnCode.OK)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Close the book."""
        del fl_ctx
        self._book.engine.dispose()

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the rounds that are left; a failure ends this job, the run controller decides what is next."""
        try:
            self._await_turn(abort_signal)
            self._run(abort_signal, fl_ctx)
        except NotAdmittedError as error:
            self._book.give_up(self._run_id, self._job_id, str(error))
            self.system_panic(f"run {self._run_id}: {error}", fl_ctx)
        except (ApplianceError, TrainerError) as error:
            self._book.note(self._run_id, self._job_id, str(error))
            self.system_panic(f"run {self._run_id}: {error}", fl_ctx)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Take note of what comes too late: it was trained on a model that the run has left behind."""
        del client_task_id
        self.log_info(fl_ctx, f"late answer of {client.name} to {task_name}: not counted")
        if task_name == policy.TASK_TRAIN and self._late is not None:
            self._late.add(read_result(client.name, result))

    def _await_turn(self, abort_signal: Signal) -> None:
        """Wait until the book names this job as the run's; that is written after submitting it."""
        deadline = time.monotonic() + CURRENT_WAIT_S
        while not self._book.is_current(self._run_id, self._job_id):
            if abort_signal.triggered or time.monotonic() >= deadline:
                raise StaleJobError("this job is not the one that continues the run")
            time.sleep(POLL_S)

    def _run(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        plan = self._book.plan(self._run_id)
        standing = self._book.checkpoint(self._run_id)
        late = self._late = Late(Carriage(plan, standing.number, standing.weights))
        if self._witness is not None:
            self._witness.open_run(plan.sha256, standing.number, standing.model_sha256)
        self._key = KeyKeeper(plan, self._book.key_path(self._run_id))
        sites = self._admit(plan, abort_signal, fl_ctx)
        last = min(plan.total_rounds, standing.number + ROUNDS_PER_JOB)
        while standing.number < last:
            standing = self._round(plan, standing, sites, abort_signal, fl_ctx)
            late.write(self._book, self._run_id)
        if last < plan.total_rounds:
            return  # the next job goes on, with the sites that have come or come back meanwhile
        self._finalize(plan, standing, sites, abort_signal, fl_ctx)
        self._circulate(sites, abort_signal, fl_ctx)
        late.write(self._book, self._run_id)

    def _admit(self, plan: Plan, abort_signal: Signal, fl_ctx: FLContext) -> frozenset[str]:
        """Show the plan to every site that misses the final model; return those that take part.

        Once sites have contributed, a later job waits for them alone: people elsewhere may take their time.
        """
        order = messages.Order(plan.sha256, wait_s=plan.approval_wait_s, plan=plan.to_json())
        needed = self._book.needed(self._run_id)
        delivered = self._book.delivered(self._run_id)
        connected = frozenset(client.name for client in self._engine.get_clients())
        everyone = (connected & self._members()) - delivered
        self._catch_up(everyone, abort_signal, fl_ctx)
        collection = Collection(
            everyone,
            progress.contributors(self._book.engine, self._run_id) & everyone or everyone,
            needed,
            plan.approval_wait_s + GRACE_S,
            plan.approval_wait_s,
            time.monotonic(),
        )
        answers = self._ask(
            policy.TASK_ADMIT, Shareable(), order, collection, abort_signal, fl_ctx, _as_it_is
        )
        refused = frozenset(answer.site for answer in answers if answer.said.code in FINAL_CODES)
        if not collection.enough:
            if any(answer.said.code == BROKEN for answer in answers):  # all shall see what one site found
                self._circulate(everyone - refused, abort_signal, fl_ctx)
            paused = [answer.site for answer in answers if answer.said.code == Refusal.PAUSED]
            if len(collection.usable) + len(paused) >= needed:
                raise AggregationError(f"{WAITING}: {', '.join(paused)}")
            reasons = ", ".join(f"{a.site}: {a.said.code}" for a in answers if a.said.code) or "no answer"
            hopeless = len(self._members() - delivered - refused) < needed  # whoever is away may come back
            raise (NotAdmittedError if hopeless else AggregationError)(
                f"{len(collection.usable)} sites take part of {needed} needed ({reasons})"
            )
        self._key.choose(answers)
        self._silent = everyone - refused - collection.usable
        return everyone - refused

    def _round(
        self, plan: Plan, standing: Checkpoint, sites: frozenset[str], abort_signal: Signal, fl_ctx: FLContext
    ) -> Checkpoint:
        number, started_at = standing.number + 1, now()
        carriage = Carriage(plan, number, standing.weights)
        shelf = Shelf.empty(self._book.arrived(self._run_id), self._job_id, carriage)

        def ask(targets: frozenset[str]) -> list[Answer]:
            return self._broadcast(
                policy.TASK_TRAIN, plan, standing, number, targets, abort_signal, fl_ctx, shelf.keep
            )

        answers = self._in_turn(plan, standing, sites, ask) if _travels(plan) else ask(sites)
        updates = [aggregation.Update(a.site, a.arrays, a.said.samples) for a in answers if not a.said.code]
        handing_over = partial(self._hand_over, plan, number, abort_signal, fl_ctx)
        led = leading.settle(plan, standing, updates, handing_over)
        result = led.result
        judged = {judgement.site: judgement for judgement in result.judgements}
        counted = led.marked([to_counted(answer, judged.get(answer.site)) for answer in answers])
        reached = Checkpoint(number, result.weights, result.state, "")
        finished = self._book.finish_round(self._run_id, self._job_id, reached, counted, started_at)
        shelf.clear()
        return finished

    def _hand_over(
        self,
        plan: Plan,
        number: int,
        abort_signal: Signal,
        fl_ctx: FLContext,
        site: str,
        arrays: Mapping[str, Any],
    ) -> Answer | None:
        """Have one site aggregate a round."""
        data, order, collection = leading.order(plan, number, site, arrays)
        task = policy.TASK_AGGREGATE
        answers = self._ask(task, data, order, collection, abort_signal, fl_ctx, _as_it_is)
        return answers[0] if answers else None

    def _in_turn(
        self,
        plan: Plan,
        standing: Checkpoint,
        sites: frozenset[str],
        ask: Callable[[frozenset[str]], list[Answer]],
    ) -> list[Answer]:
        """Ask one site after the other until one gives a usable update; those who did not are answers too."""
        rule = strategies.get(plan.strategy.name)
        left, answers = sites & self._members(), []
        while left:
            awake = left - self._silent or left  # whoever fell silent has its turn after all others failed
            chosen = frozenset(rule.participants(standing.number + 1, awake, plan.seed, standing.state))
            left -= chosen
            for answer in ask(chosen) or [silent(site) for site in sorted(chosen)]:
                answers.append(answer)
                if _is_usable(answer, plan, standing):
                    return answers
        return answers

    def _finalize(
        self, plan: Plan, standing: Checkpoint, sites: frozenset[str], abort_signal: Signal, fl_ctx: FLContext
    ) -> None:
        """Give the sites the final model; each evaluates it and makes its own package of it.

        With fewer than ``min_sites`` the run is not over: the next job offers the model again.
        """
        number = plan.total_rounds
        answers = self._broadcast(
            policy.TASK_FINALIZE, plan, standing, number, sites, abort_signal, fl_ctx, _as_it_is
        )
        counted = [to_counted(answer, None) for answer in answers]
        have = self._book.finish_run(self._run_id, self._job_id, counted)
        if len(have) < plan.min_sites:
            raise AggregationError(
                f"{len(have)} sites have the final model; expected at least {plan.min_sites}"
            )

    def _broadcast(
        self,
        task: str,
        plan: Plan,
        standing: Checkpoint,
        number: int,
        sites: frozenset[str],
        abort_signal: Signal,
        fl_ctx: FLContext,
        keep: Callable[[Answer], Answer],
    ) -> list[Answer]:
        order = messages.Order(plan.sha256, number, standing.model_sha256, plan.round_timeout_s)
        model = FLModel(params_type=ParamsType.FULL, params=standing.weights, current_round=number)
        sites &= self._members()
        collection = Collection(
            sites,
            sites - self._silent,
            1 if task == policy.TASK_TRAIN and _travels(plan) else self._book.needed(self._run_id),
            plan.round_timeout_s,
            plan.straggler_wait_s,
            time.monotonic(),
            limit_s=MOST_LEASES * plan.round_timeout_s,
        )
        answers = self._ask(
            task, FLModelUtils.to_shareable(model), order, collection, abort_signal, fl_ctx, keep
        )
        self._silent = (self._silent - sites) | collection.silent
        return answers

    def _ask(
        self,
        name: str,
        data: Shareable,
        order: messages.Order,
        collection: Collection,
        abort_signal: Signal,
        fl_ctx: FLContext,
        keep: Callable[[Answer], Answer],
    ) -> list[Answer]:
        """Broadcast one task and gather answers, each as ``keep`` keeps it, until the collection is over."""
        answers: dict[str, Answer] = {}
        self._disk: OSError | None = None
        if self._witness is not None:
            order = replace(order, ledger=self._witness.offer(collection.targets))
        data[messages.ORDER_KEY] = messages.write_order(order)
        if self._key.text:
            data[messages.ENCRYPTION_KEY] = self._key.text
        task = Task(name=name, data=data, result_received_cb=self._receiver(answers, collection, keep))
        self.broadcast(task=task, fl_ctx=fl_ctx, targets=sorted(collection.targets), min_responses=0)
        while not self._is_over(collection):
            if abort_signal.triggered:
                raise StaleJobError("the job was aborted")
            if self._disk is not None:
                raise CoordinatorError(f"an update could not be kept ({self._disk.strerror})") from self._disk
            time.sleep(POLL_S)
        self.cancel_task(task, TaskCompletionStatus.OK, fl_ctx)
        still = self._members()  # whoever left or was expelled meanwhile does not count
        with self._lock:
            counted = [answers[site] for site in sorted(answers) if site in still]
        return counted if self._witness is None else self._witness.judge(name, order, counted)

    def _catch_up(self, sites: frozenset[str], abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Send sites that were long away the ledger's blocks in parts, as long as they take them."""
        if self._witness is None:
            return
        before, first = 0, self._witness.missing_from(sites)
        while first is not None and first > before:
            self._circulate(sites, abort_signal, fl_ctx)
            before, first = first, self._witness.missing_from(sites)

    def _circulate(self, sites: frozenset[str], abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Show sites the ledger's newest blocks; who does not answer now sees them with the next order."""
        if self._witness is None or not sites:
            return
        collection = Collection(sites, sites, len(sites), CIRCULATE_S, 0.0, time.monotonic())
        order = messages.Order("", wait_s=CIRCULATE_S)
        self._ask(policy.TASK_LEDGER, Shareable(), order, collection, abort_signal, fl_ctx, _as_it_is)

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
        self, answers: dict[str, Answer], collection: Collection, keep: Callable[[Answer], Answer]
    ) -> Callable[..., None]:
        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            del fl_ctx
            whole = client_task.task.name == policy.TASK_AGGREGATE
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


def _travels(plan: Plan) -> bool:
    """Whether one site trains at a time, and the round is that one's."""
    return strategies.get(plan.strategy.name).one_at_a_time


def _is_usable(answer: Answer, plan: Plan, standing: Checkpoint) -> bool:
    update = aggregation.Update(answer.site, answer.arrays, answer.said.samples)
    return not answer.said.code and aggregation.judge(standing.weights, update, plan.bounds).reason is None


def _as_it_is(answer: Answer) -> Answer:
    return answer
