"""How a round's worker says that it is still at it: its lease is renewed, its time booked, halts heard of."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from appliance.db.base import now
from appliance.db.engine import reading
from appliance.db.research import Protocol, Round
from appliance.errors import ApplianceError
from appliance.federation import protocols
from appliance.work import LeaseLostError
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.work import Claim

BEAT_EVERY_S: Final = 1.0
RENEWALS: Final = 4  # of a lease, in its time
LONGEST_CALL_S: Final = 6 * 3600.0  # then a call that reports nothing counts as hung, and its lease runs out


class HaltedError(ApplianceError):
    """The protocol was paused or left here, it expired, or its hours are spent; ``code`` says which."""

    def __init__(self, code: str) -> None:
        super().__init__(f"stopped at this site: {code}")
        self.code = code


@dataclass
class Heartbeat:
    """Renews the claim's lease as work proceeds, at most once a second, and books the time.

    Raises
    ------
    LeaseLostError
        If the lease was lost.
    HaltedError
        If nothing of the round's protocol may run here any more: work stops at this step.
    """

    claim: Claim
    beaten: float = 0.0
    counted: float = field(default_factory=time.monotonic)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        at = time.monotonic()
        if done < total and at - self.beaten < BEAT_EVERY_S:
            return
        seconds = Round.compute_seconds + (at - self.counted)
        self.claim.heartbeat({"stage": stage, "done": done, "total": total}, compute_seconds=seconds)
        self.beaten = self.counted = at
        check_halt(self.claim)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Renew the lease while one long call reports nothing; raises what that met, afterwards.

        The call itself cannot be stopped: what it made is not used when this raises.
        """
        self(stage, 0, 1)
        over, met = threading.Event(), list[ApplianceError]()
        thread = threading.Thread(
            target=self._renew, args=(stage, over, met), name=f"{stage} lease", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if met:
            raise met[0]
        self(stage, 1, 1)

    def _renew(self, stage: str, over: threading.Event, met: list[ApplianceError]) -> None:
        ends = time.monotonic() + LONGEST_CALL_S
        while not over.wait(self.claim.lease_s / RENEWALS) and time.monotonic() < ends:
            try:
                self.beaten = 0.0
                self(stage, 0, 1)
            except (LeaseLostError, HaltedError) as error:
                met.append(error)
                return


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
