"""The coordinator's desk for the consortium's ledger, between runs, too.

Members fetch blocks, countersign them and say steps of sharing.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from appliance.consortium import block as blocks
from appliance.consortium.chronicle import Chronicle
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.offers import read_countersignature, write_offer
from appliance.federation import members
from appliance.federation.errors import EnrolmentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from appliance.ledger import Ledger


class LedgerDesk:
    """Answers members; who asks was found out before."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self._engine, self._ledger = engine, ledger
        self._chronicle = Chronicle(engine, ledger.signing)
        self._lock = threading.Lock()

    def fetch(self, site: str, request: str) -> dict[str, Any]:
        """Return the blocks from ``first`` on, after keeping the countersignature that came along.

        Raises
        ------
        EnrolmentError
            If the request is none, or the site countersigned another history.
        """
        asked = _object(request, {"first", "countersignature"})
        if not isinstance(asked["first"], int) or isinstance(asked["first"], bool):
            raise EnrolmentError("first: expected a number")
        with self._lock:
            try:
                self._chronicle.begin()
                if asked["countersignature"] is not None:
                    self._keep(site, asked["countersignature"])
                return {"offer": write_offer(self._chronicle.offer_from(asked["first"]))}
            except ConsortiumError as error:
                raise EnrolmentError(str(error)) from error

    def share(self, site: str, request: str) -> dict[str, Any]:
        """Append a step of sharing that the asking site signed.

        Raises
        ------
        EnrolmentError
            If it is none, another site's, or does not follow what stands in the ledger.
        """
        with self._lock:
            try:
                signed = blocks.read_share(_object(request, {"share", "signature"}))
                if signed.share.site != site:
                    raise EnrolmentError("share: the step of another site")
                self._chronicle.take_share(signed)
            except ConsortiumError as error:
                raise EnrolmentError(str(error)) from error
        return {}

    def _keep(self, site: str, value: object) -> None:
        if not isinstance(value, dict):
            raise EnrolmentError("countersignature: expected an object")
        read = read_countersignature(value)
        members.pin(self._engine, self._ledger, site, read.key)
        wrong = self._chronicle.take_countersignature(site, read)
        if wrong:
            raise EnrolmentError(f"countersignature: {wrong}")


def _object(request: str, names: set[str]) -> Mapping[str, Any]:
    try:
        value = json.loads(request)
    except (ValueError, RecursionError) as error:
        raise EnrolmentError("request: expected JSON") from error
    if not isinstance(value, dict) or set(value) != names:
        raise EnrolmentError(f"request: expected an object of {', '.join(sorted(names))}")
    return value
