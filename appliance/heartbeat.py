"""How a round's worker says that it is still at it: its lease is renewed, its time booked, halts heard of."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from appliance import logs
from appliance.db import faults
from appliance.db.base import now
from appliance.db.engine import reading
from appliance.db.research import Protocol, Round
from appliance.errors import ApplianceError
from appliance.federation import protocols
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.exc import SQLAlchemyError

    from appliance.work import Claim

BEAT_EVERY_S: Final = 1.0
RENEWALS: Final = 4  # of a lease, in its time
LONGEST_CALL_S: Final = 6 * 3600.0  # then a call that reports nothing counts as hung, and its lease runs out
LEASE_UNRENEWED: Final = "work.lease_unrenewed"
LEASE_RENEWED: Final = "work.lease_renewed"

_LOG = logs.logger(__name__)


class HaltedError(ApplianceError):
    """The protocol was paused or left here, it expired, or its hours are spent; ``code`` says which."""

    def __init__(self, code: str) -> None:
        super().__init__(f"stopped at this site: {code}")
        self.code = code


class UnrenewedError(ApplianceError):
    """The database could not be written for as long as the lease lasted: others may hold the row by now."""


@dataclass
class Beat:
    """Renews the claim's lease as work proceeds, at most once a second.

    A database that fails for a while stops nothing: each failure is tried again until the lease has run out.

    Raises
    ------
    LeaseLostError
        If the row is no longer ours.
    UnrenewedError
        If the lease ran out because the database failed for so long.
    """

    claim: Claim
    beaten: float = 0.0
    failing: bool = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        if done < total and time.monotonic() - self.beaten < BEAT_EVERY_S:
            return
        try:
            self.tell({"stage": stage, "done": done, "total": total})
        except faults.PASSING as error:
            self._bear(error)
        else:
            if self.failing:
                _LOG.info(LEASE_RENEWED, row_id=self.claim.row_id)
            self.failing = False
        self.beaten = time.monotonic()

    def tell(self, progress: dict[str, Any]) -> None:
        """Renew the lease in the database."""
        self.claim.heartbeat(progress)

    def confirm(self, stage: str) -> None:
        """Return once the database has the last renewal: before something leaves for good."""
        while self.failing:
            time.sleep(BEAT_EVERY_S)
            self(stage, 1, 1)

    def _bear(self, error: SQLAlchemyError) -> None:
        """Go on without a renewal while the lease stands."""
        left_s = (self.claim.lease_until - now()).total_seconds()
        if left_s <= 0:
            raise UnrenewedError(
                f"the lease of {self.claim.lease_s:g} s ran out unrenewed: {faults.name_of(error)}"
            ) from error
        if not self.failing:
            _LOG.warning(
                LEASE_UNRENEWED,
                row_id=self.claim.row_id,
                reason=faults.name_of(error),
                left_s=round(left_s, 1),
            )
        self.failing = True


@dataclass
class Heartbeat(Beat):
    """A round's beat, which also books its time and hears of halts.

    Raises
    ------
    HaltedError
        If nothing of the round's protocol may run here any more: work stops at this step.
    """

    counted: float = field(default_factory=time.monotonic)

    def tell(self, progress: dict[str, Any]) -> None:
        """Renew the lease, and look whether the round may go on."""
        at = time.monotonic()
        self.claim.heartbeat(progress, compute_seconds=Round.compute_seconds + (at - self.counted))
        self.counted = at
        check_halt(self.claim)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Renew the lease while one long call reports nothing; raises what that met, afterwards.

        The call itself cannot be stopped: what it made is not used when this raises.
        """
        self(stage, 0, 1)
        over = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix=f"{stage} lease") as pool:
            renewing = pool.submit(self._renew, stage, over)
            try:
                yield
            finally:
                over.set()
        renewing.result()
        self(stage, 1, 1)
        self.confirm(stage)

    def _renew(self, stage: str, over: threading.Event) -> None:
        ends = time.monotonic() + LONGEST_CALL_S
        while time.monotonic() < ends:
            every_s = self.claim.lease_s / RENEWALS
            if over.wait(min(every_s, BEAT_EVERY_S) if self.failing else every_s):
                return
            self.beaten = 0.0
            self(stage, 0, 1)


def check_halt(claim: Claim) -> None:
    """Raise HaltedError when the protocol of a claimed round may not run here now."""
    with reading(claim.engine) as session:
        protocol = session.get(Protocol, claim.row.protocol_id)
        code = Refusal.NOT_APPROVED if protocol is None else protocols.halted(protocol, now())
        if code is None and protocol is not None:
            limit = protocol.plan.get("max_hours")
            spent = limit is not None and protocols.hours(session, protocol) >= limit
            code = Refusal.HOURS_SPENT if spent else None
    if code is not None:
        raise HaltedError(code)
