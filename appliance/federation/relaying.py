"""A round between peers at the coordinator: it asks, checks, records and hands over; it makes no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance import logs
from appliance.federation.answers import Answer, silent, to_counted
from appliance.federation.mailroom import Mailroom, start_of
from trainer.errors import UpdateError
from trainer.federation.aggregation import Update
from trainer.federation.errors import AggregationError
from trainer.federation.peering import record as records
from trainer.federation.peering.letters import Mail, order_to_send
from trainer.federation.peering.relay import Heard, Relay
from trainer.weights_io import mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.federation.book import Book, Checkpoint, Counted
    from trainer.federation.peering.record import Record
    from trainer.federation.plan import Plan
    from trainer.weights_io import Array, Weights

MODEL_REFUSED = "peer.model_refused"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Asks:
    """How the engine is asked.

    Parameters
    ----------
    train : callable
        Has sites train, each with its own parcel; returns their answers.
    send : callable
        Asks sites for their models with the same arrays; returns their answers.
    quiet : callable
        Returns who fell silent.
    """

    train: Callable[[frozenset[str], Callable[[str], Weights]], list[Answer]]
    send: Callable[[frozenset[str], Weights], list[Answer]]
    quiet: Callable[[], frozenset[str]]


@dataclass(frozen=True, eq=False)
class Relaying:
    """The coordinator's part in one run."""

    relay: Relay
    room: Mailroom

    @property
    def start(self) -> Mapping[str, Array]:
        """The model that all sites started from."""
        return self.relay.start

    def is_one_s(self, number: int) -> bool:
        """Whether a round is one drawn site's, which fetches others' models."""
        return self.relay.pulls and number > 1

    def round(self, standing: Checkpoint, sites: frozenset[str], asks: Asks) -> tuple[Record, list[Counted]]:
        """Have a round done; return its record, and the sites' parts for the book.

        Raises
        ------
        AggregationError
            If fewer sites than needed told of a model.
        """
        record, number = _record(standing), standing.number + 1
        if self.is_one_s(number):
            heard, counted = self._one_after_the_other(standing, record, sites, asks)
            needed = 1
        else:
            answers = asks.train(sites, lambda site: self.parcel(standing, site, sites))
            judged = [self._judged(record, number, answer) for answer in answers]
            heard = [one for one, _ in judged if one is not None]
            counted = [one for _, one in judged]
            needed = self.relay.plan.min_sites
        if len(heard) < needed:
            raise AggregationError(f"{len(heard)} sites told of a model; expected at least {needed}")
        return self.relay.next_record(record, number, heard), counted

    def parcel(
        self,
        standing: Checkpoint,
        site: str,
        there: frozenset[str] = frozenset(),
        pulled: Mapping[str, Mapping[str, Array]] | None = None,
    ) -> Weights:
        """Return what goes to a site with an order: the record, and beside it what others have for it.

        Parameters
        ----------
        there : frozenset of str
            Who is asked to take part in the round; nobody for the final model.
        pulled : Mapping, optional
            By site, the models that it merges before it trains.
        """
        record = _record(standing)
        messages: dict[str, Mapping[str, Array]] = {
            other: self.room.message(record, other, site).mapped() for other in self.relay.links(record, site)
        }
        start = {} if standing.number == 0 or record.version(site) else self.start
        mail = Mail(tuple(sorted(there)), {**messages, **(pulled or {})}, start)
        return {**standing.weights, **mail.arrays()}

    def tidy(self, record: Record) -> None:
        """Remove what no site needs any more."""
        self.room.tidy(record, self.relay)

    def _one_after_the_other(
        self, standing: Checkpoint, record: Record, sites: frozenset[str], asks: Asks
    ) -> tuple[list[Heard], list[Counted]]:
        """Draw one site after the other until one trains on what it fetched; the others are passed over."""
        left, counted = sites, []
        while left:
            [site] = self.relay.drawn(standing.number + 1, left - asks.quiet() or left)
            left -= {site}
            pulled = self._pulled(standing, record, site, sites - asks.quiet(), asks)

            def parcel(one: str, pulled: Mapping[str, Mapping[str, Array]] = pulled) -> Weights:
                return self.parcel(standing, one, sites, pulled)

            for answer in asks.train(frozenset({site}), parcel) or [silent(site)]:
                heard, one = self._judged(record, standing.number + 1, answer)
                counted.append(one)
                if heard is not None:
                    return [heard], counted
        return [], counted

    def _pulled(
        self, standing: Checkpoint, record: Record, to: str, sites: frozenset[str], asks: Asks
    ) -> dict[str, Mapping[str, Array]]:
        """Fetch the models that are newer than what a site merged; who does not send is passed over."""
        wanted = frozenset(self.relay.wanted(record, to, sites))
        found = {}
        for answer in asks.send(wanted, order_to_send(standing.weights, to)) if wanted else ():
            if answer.said.code:
                continue
            try:
                arrays = mapped(answer.arrays)
                found[answer.site] = self.relay.check_model(record, answer.site, to, arrays)
            except UpdateError as error:
                _LOG.warning(MODEL_REFUSED, site=answer.site, reason=str(error))
        return found

    def _judged(self, record: Record, number: int, answer: Answer) -> tuple[Heard | None, Counted]:
        """Check one site's word, and keep what others are to have of it."""
        if answer.said.code:
            return None, to_counted(answer, None)
        site, version = answer.site, record.version(answer.site)
        held = self.room.model(record, site, version) if self.relay.quantised and version else self.start
        update = Update(site, answer.arrays, answer.said.samples)
        judgement, heard = self.relay.judge(record, number, update, answer.update_sha256, held)
        if heard is not None and not self.relay.pulls:
            message = heard.letter.message if self.relay.quantised else None
            self.room.keep(site, number, heard.letter.said, heard.model, message)
            heard = Heard(site, heard.letter, {}, heard.samples)
        return heard, to_counted(answer, judgement)


def of_run(plan: Plan, book: Book, run_id: str) -> Relaying | None:
    """Return the coordinator's part in a run between peers; None for any other."""
    if not plan.own_models:
        return None
    return Relaying(
        Relay(plan, start_of(book, run_id).mapped()), Mailroom(book.root / "runs" / run_id / "mail")
    )


def _record(standing: Checkpoint) -> Record:
    return records.standing(standing.number, standing.weights, standing.model_sha256)
