"""A site asks its coordinator for the ledger, and says steps of sharing, without any run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance.consortium import replica
from appliance.consortium.chain import Chain
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.offers import read_offer
from appliance.consortium.replica import Held, Replica
from appliance.db.engine import reading
from appliance.federation import dialect, joining, workspaces

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.consortium.block import SignedShare
    from appliance.node import ResearchZone


@dataclass(frozen=True)
class Speaker:
    """Speaks for a site; ``workspace`` is the folder that joining made."""

    zone: ResearchZone
    workspace: Path

    @property
    def site(self) -> str:
        """Under which name."""
        return self.zone.settings.federation.site

    def sync(self) -> Chain:
        """Fetch what the replica lacks, countersign it, and return the chain.

        Raises
        ------
        ConsortiumError
            If something is wrong with the history; a finding is open then.
        EnrolmentError, StrangeRootError, CoordinatorAwayError
            If the coordinator refuses, is another one, runs a version with which this one cannot work, or is
            away.
        """
        said: dict[str, Any] | None = None
        first = len(self._stored())
        while True:
            answer = self._ask("ledger", {"first": first, "countersignature": said})
            dialect.check_coordinator(answer)
            offer = read_offer(_mapping(answer, "offer"))
            if said is not None and first >= offer.head.size:
                return Chain.replay(self._stored())
            received = Replica(self.zone).receive(offer)
            if isinstance(received, Held):
                raise ConsortiumError(received.message)
            if said is not None and received.head.size <= first:
                raise ConsortiumError("the coordinator offers no block after those that are here")
            said, first = asdict(received), received.head.size

    def say(self, signed: SignedShare) -> None:
        """Have a step of sharing appended; raises like :meth:`sync`, but for ConsortiumError."""
        self._ask("share", asdict(signed))

    def _ask(self, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        here = workspaces.read(self.workspace)
        return joining.ask_as_member(what, here, self.zone.root, json.dumps(request))

    def _stored(self) -> list[Any]:
        with reading(self.zone.engine) as session:
            return replica.current(session)


def _mapping(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise ConsortiumError("the coordinator's answer: expected blocks of the ledger")
    return value
