"""The coordinator's part in the consortium's ledger: it offers blocks and checks what sites sign."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from appliance.consortium import block as blocks
from appliance.consortium.chain import FINALIZE, TRAIN
from appliance.consortium.chronicle import Chronicle
from appliance.consortium.errors import BlockFormError
from appliance.consortium.offers import read_countersignature, write_offer
from appliance.federation import members, messages
from appliance.federation.errors import MembershipError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Engine

    from appliance.consortium.block import Statement
    from appliance.federation.answers import Answer
    from appliance.federation.book import Book
    from appliance.ledger import Ledger

UNSIGNED: Final = "ledger_unsigned"
OTHER_HISTORY: Final = "ledger_other_history"
SIGNED: Final = frozenset({TRAIN, FINALIZE})  # tasks whose answers carry a contribution


class Witness:
    """Nothing counts that its site has not signed under the history which everybody has."""

    def __init__(self, engine: Engine, ledger: Ledger, chronicle: Chronicle) -> None:
        self._engine, self._ledger, self._chronicle = engine, ledger, chronicle

    def open_run(self, plan: str, number: int, model: str) -> None:
        """Begin a run's chapter with the model that it stands at, unless it has one."""
        self._chronicle.open_run(plan, number, model)

    def offer(self, sites: Iterable[str]) -> dict[str, Any]:
        """Return the blocks that these sites lack."""
        return write_offer(self._chronicle.offer(sites))

    def missing_from(self, sites: Iterable[str]) -> int | None:
        """Return the first block of the next offer to these sites; None when it brings them to the newest."""
        offer = self._chronicle.offer(sites)
        return None if offer.first + len(offer.blocks) > offer.head.size else offer.first

    def judge(self, task: str, order: messages.Order, answers: Sequence[Answer]) -> list[Answer]:
        """Return the answers; one whose site has not signed what it should becomes a refusal."""
        return [self._judge(task, order, answer) for answer in answers]

    def _judge(self, task: str, order: messages.Order, answer: Answer) -> Answer:
        said = answer.said
        if not said.countersignature:
            return answer if said.code else _refused(answer, UNSIGNED, "no countersignature")
        wrong = self._countersignature(answer.site, said.countersignature)
        if wrong:
            return _refused(answer, OTHER_HISTORY, wrong)
        if said.code or task not in SIGNED:
            return answer
        try:
            statement = blocks.read_statement(said.statement.get("statement"))
        except BlockFormError:
            return _refused(answer, UNSIGNED, "no signed contribution")
        signature = said.statement.get("signature")
        wrong = self._statement(task, order, answer, statement, str(signature))
        return _refused(answer, UNSIGNED, wrong) if wrong else answer

    def _countersignature(self, site: str, value: Mapping[str, Any]) -> str:
        try:
            read = read_countersignature(value)
            members.pin(self._engine, self._ledger, site, read.key)
        except (BlockFormError, MembershipError) as error:
            return str(error)
        return self._chronicle.take_countersignature(site, read)

    def _statement(
        self, task: str, order: messages.Order, answer: Answer, statement: Statement, signature: str
    ) -> str:
        for finding in self._chronicle.chain().check_statement(statement, signature):
            return finding.message
        update = answer.update_sha256 if task == TRAIN else ""
        expected = (
            answer.site,
            task,
            order.number,
            order.plan_sha256,
            order.model_sha256,
            update,
            answer.said.receipt_sha256,
            answer.said.samples,
        )
        said = asdict(statement)
        names = ("site", "kind", "number", "plan", "model", "update", "receipt", "samples")
        for name, value in zip(names, expected, strict=True):
            if said[name] != value:
                return f"the signed contribution names another {name}"
        return ""


def _refused(answer: Answer, code: str, message: str) -> Answer:
    said = messages.SiteAnswer(code, message[:300], 0, {}, 0.0, "", "")
    return replace(answer, said=said, arrays={})


def of_book(book: Book) -> Witness | None:
    """Return what speaks for the consortium's ledger; a book without keys has none."""
    if book.ledger is None:
        return None
    return Witness(book.engine, book.ledger, Chronicle(book.engine, book.ledger.signing))
