"""The engine's workflow of one job of a run: continue from the book's last finished round to the end.

It runs in the engine's server job process. A dead site neither stops a round nor falsifies it: a round counts
with ``min_sites`` checked updates, each of them trained on this round's model. Where one site trains at a
time, a round counts with that one's update, and whoever gives none is passed over.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nvflare.apis.shareable import Shareable

from appliance.consortium.offers import BROKEN
from appliance.db.base import now
from appliance.errors import ApplianceError
from appliance.federation import (
    leading,
    members,
    messages,
    policy,
    progress,
    provision,
    relaying,
    turns,
    witness,
)
from appliance.federation.answers import (
    FINAL_CODES,
    MAY_COME_BACK,
    Answer,
    read_result,
    to_counted,
    to_update,
    why,
)
from appliance.federation.asking import POLL_S, Asking, as_it_is
from appliance.federation.book import WAITING, Checkpoint, StaleJobError, open_book
from appliance.federation.collection import MOST_LEASES, Collection
from appliance.federation.errors import CoordinatorError
from appliance.federation.keykeeper import KeyKeeper
from appliance.federation.late import Late
from appliance.federation.shelf import Carriage, Shelf, in_memory
from appliance.federation.wayback import WayBack, whole
from trainer.errors import TrainerError
from trainer.federation.errors import AggregationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nvflare.apis.client import Client
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.signal import Signal

    from trainer.federation.plan import Plan
    from trainer.weights_io import Weights

    Parcel = Callable[[str], Weights]

GRACE_S: Final = 5.0
ROUNDS_PER_JOB: Final = 10
CURRENT_WAIT_S: Final = 30.0
CIRCULATE_S: Final = 20.0


class NotAdmittedError(CoordinatorError):
    """So many sites refused the plan that no other attempt makes sense before people have spoken."""


class RunWorkflow(Asking):
    """Workflow of a run's job; the run's id is its only argument."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id
        self._late: Late | None = None

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the book."""
        self._book = open_book(provision.load(Path(os.environ[policy.ROOT_VARIABLE])))
        self._members: Callable[[], frozenset[str]] = partial(members.active, self._book.engine)
        self._job_id = str(fl_ctx.get_job_id())
        self._silent: frozenset[str] = frozenset()
        self._witness = witness.of_book(self._book)
        self._engine.register_aux_message_handler(policy.TOPIC_PROGRESS, self._hear_progress)

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
        self._relaying = relaying.of_run(plan, self._book, self._run_id)
        late = self._late = Late(self._carriage(plan, standing.number, standing))
        if self._witness is not None:
            self._witness.open_run(plan.sha256, standing.number, standing.model_sha256)
        self._way_back = WayBack(plan)
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
        answers = self._ask(policy.TASK_ADMIT, Shareable(), order, collection, abort_signal, fl_ctx, as_it_is)
        refused = frozenset(answer.site for answer in answers if answer.said.code in FINAL_CODES)
        if not collection.enough:
            if any(answer.said.code == BROKEN for answer in answers):  # all shall see what one site found
                self._circulate(everyone - refused, abort_signal, fl_ctx)
            waits = [answer for answer in answers if answer.said.code in MAY_COME_BACK]
            if len(collection.usable) + len(waits) >= needed:
                raise AggregationError(f"{WAITING} {'; '.join(map(why, waits))}")
            reasons = "; ".join(why(answer) for answer in answers if answer.said.code) or "no answer"
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
        carriage = self._carriage(plan, number, standing)
        shelf = Shelf.empty(self._book.arrived(self._run_id), self._job_id, carriage, in_memory(plan))

        def ask(targets: frozenset[str], parcel: Parcel | None = None) -> list[Answer]:
            return self._broadcast(
                policy.TASK_TRAIN, plan, standing, targets, abort_signal, fl_ctx, shelf.keep, parcel
            )

        if self._relaying is not None:
            send = partial(self._fetch, plan, number, shelf.beside("sent").keep, abort_signal, fl_ctx)
            asks = relaying.Asks(ask, send, lambda: self._silent)
            record, told = self._relaying.round(standing, sites & self._members(), asks)
            reached = Checkpoint(number, record.arrays(), {}, "")
            finished = self._book.finish_round(self._run_id, self._job_id, reached, told, started_at)
            self._relaying.tidy(record)
            shelf.clear()
            return finished
        if turns.travels(plan):
            answers = turns.in_turn(plan, standing, sites & self._members(), lambda: self._silent, ask)
        else:
            answers = ask(sites)
        updates = [to_update(answer) for answer in answers if not answer.said.code]
        handing_over = partial(self._hand_over, plan, number, abort_signal, fl_ctx)
        led = leading.settle(plan, self._way_back.plain(standing), updates, handing_over)
        result = led.result
        judged = {judgement.site: judgement for judgement in result.judgements}
        counted = led.marked([to_counted(answer, judged.get(answer.site)) for answer in answers])
        reached = self._way_back.taken(number, standing, result)
        finished = self._book.finish_round(self._run_id, self._job_id, reached, counted, started_at)
        self._way_back.reached(standing, finished, (one.site for one in updates))
        shelf.clear()
        return finished

    def _carriage(self, plan: Plan, number: int, standing: Checkpoint) -> Carriage:
        """Return how what sites send in a round travels; their own models are like the first."""
        return Carriage(plan, number, standing.weights if self._relaying is None else self._relaying.start)

    def _fetch(
        self,
        plan: Plan,
        number: int,
        keep: Callable[[Answer], Answer],
        abort_signal: Signal,
        fl_ctx: FLContext,
        targets: frozenset[str],
        arrays: Mapping[str, Any],
    ) -> list[Answer]:
        """Ask sites for their models."""
        data, order, collection = leading.order(plan, number, targets, arrays, self._silent)
        answers = self._ask(policy.TASK_SEND, data, order, collection, abort_signal, fl_ctx, keep)
        self._silent = (self._silent - targets) | collection.silent
        return answers

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
        data, order, collection = leading.order(plan, number, frozenset({site}), arrays)
        task = policy.TASK_AGGREGATE
        answers = self._ask(task, data, order, collection, abort_signal, fl_ctx, as_it_is)
        return answers[0] if answers else None

    def _finalize(
        self, plan: Plan, standing: Checkpoint, sites: frozenset[str], abort_signal: Signal, fl_ctx: FLContext
    ) -> None:
        """Give the sites the final model; each evaluates it and makes its own package of it.

        With fewer than ``min_sites`` the run is not over: the next job offers the model again.
        """
        parcel = None if self._relaying is None else partial(self._relaying.parcel, standing)
        answers = self._broadcast(
            policy.TASK_FINALIZE, plan, standing, sites, abort_signal, fl_ctx, as_it_is, parcel
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
        sites: frozenset[str],
        abort_signal: Signal,
        fl_ctx: FLContext,
        keep: Callable[[Answer], Answer],
        parcel: Parcel | None = None,
    ) -> list[Answer]:
        number = standing.number + (task == policy.TASK_TRAIN)
        order = messages.Order(plan.sha256, number, standing.model_sha256, plan.round_timeout_s)
        sites &= self._members()
        if parcel is None:
            data = self._way_back.data(standing, number, sites)
        else:
            data = {site: whole(parcel(site), number) for site in sites}
        collection = Collection(
            sites,
            sites - self._silent,
            self._fewest(task, plan, number),
            plan.round_timeout_s,
            plan.straggler_wait_s,
            time.monotonic(),
            limit_s=MOST_LEASES * plan.round_timeout_s,
        )
        answers = self._ask(task, data, order, collection, abort_signal, fl_ctx, keep)
        self._silent = (self._silent - sites) | collection.silent
        return answers

    def _fewest(self, task: str, plan: Plan, number: int) -> int:
        """Return how many answers a broadcast needs."""
        alone = turns.travels(plan) or (self._relaying is not None and self._relaying.is_one_s(number))
        return 1 if task == policy.TASK_TRAIN and alone else self._book.needed(self._run_id)

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
        self._ask(policy.TASK_LEDGER, Shareable(), order, collection, abort_signal, fl_ctx, as_it_is)
