"""What the engine's job process says to the research zone; its imports stay small."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from appliance.federation.errors import SiteServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.federation.unixclient import Content, UnixClient

POLL_S: Final = 0.1
LONGEST_POLL_S: Final = 1.0
# A round's time is all sites': the row is a short question, asked often where the work is short.
WORK_POLL_SHARE: Final = 0.03  # of the time that the work took so far
WORK_POLL_S: Final = (0.05, 0.2)
SERVICE_AWAY_S: Final = 300.0


class AbortedError(Exception):
    """The engine told us to stop."""


@dataclass(frozen=True)
class Refused:
    """The site does not do it; code and message for the coordinator."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    """A finished round: the update's safetensors bytes (empty for an evaluation) and what goes with it."""

    round_id: str
    content: bytes
    samples: int
    metrics: Mapping[str, Any]
    train_seconds: float
    receipt_sha256: str
    signature: str
    statement: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """Talks to the site's service on behalf of one engine job.

    Parameters
    ----------
    aborted : callable
        Whether the engine wants this task to end; looked at before every question.
    came_on : callable
        Called whenever the round's work went on.
    """

    client: UnixClient
    aborted: Callable[[], bool]
    came_on: Callable[[], None] = lambda: None

    def keep(self, offer: Mapping[str, Any]) -> tuple[Refused | None, dict[str, Any]]:
        """Hand over blocks of the consortium's ledger; return a refusal and the site's countersignature."""
        answer = _mapping(self._ask("POST", "/v1/consortium", offer))
        if answer["code"]:
            return Refused(str(answer["code"]), str(answer["message"])), {}
        return None, _mapping(answer["countersignature"])

    def note_other_version(self, protocol: int) -> None:
        """Have the site write down that its coordinator speaks another protocol."""
        self._ask("POST", "/v1/versions", {"protocol": protocol})

    def admit(
        self, plan: Mapping[str, Any], plan_sha256: str, wait_s: float, told_by: str = ""
    ) -> Refused | None:
        """Propose a plan and wait for a person's decision; None means admitted.

        ``told_by``: which Cloister the coordinator runs.
        """
        body = {"plan": plan, "plan_sha256": plan_sha256, "told_by": told_by}
        return self._until_decided(lambda: _mapping(self._ask("POST", "/v1/plans", body)), wait_s)

    def take_key(self, plan_sha256: str, key: str) -> Refused | None:
        """Hand over the key of encrypted updates as the coordinator has it; a refusal says why it is none."""
        body = {"plan_sha256": plan_sha256, "key": key}
        answer = _mapping(self._ask("POST", "/v1/keys", body))
        return Refused(str(answer["code"]), str(answer["message"])) if answer["code"] else None

    def offer_key(self, plan_sha256: str) -> tuple[Refused | None, str]:
        """Ask the site for a key of encrypted updates, sealed for all sites of the plan."""
        answer = _mapping(self._ask("GET", f"/v1/keys/{plan_sha256}"))
        if answer["code"]:
            return Refused(str(answer["code"]), str(answer["message"])), ""
        return None, str(answer["key"])

    def run(self, asked: Mapping[str, Any], model: Content, wait_s: float) -> Finished | Refused:
        """Run one round to its end: :meth:`begin`, then :meth:`finish`."""
        begun = self.begin(asked, model, wait_s)
        return begun if isinstance(begun, Refused) else self.finish(begun)

    def begin(
        self, asked: Mapping[str, Any], model: Content, wait_s: float, mail: Content = b"", base: str = ""
    ) -> str | Refused:
        """Ask for a round and store the model, and its mail, if they are wanted; return the round's id.

        ``base``: hash of the model before, where ``model`` is a packed step from that one.
        """
        round_id = ""

        def begin() -> dict[str, Any]:
            nonlocal round_id
            answer = self._ask("POST", "/v1/rounds", asked)
            if answer["decision"]["standing"] == "wanted":
                self._store("models", str(asked["model_sha256"]), asked, model, base)
                if mail:
                    self._store("mail", str(asked["mail_sha256"]), asked, mail)
                answer = self._ask("POST", "/v1/rounds", asked)
            round_id = str((answer["round"] or {}).get("round_id", ""))
            return _mapping(answer["decision"])

        return self._until_decided(begin, wait_s) or round_id

    def finish(self, round_id: str) -> Finished | Refused:
        """Have a round's row worked on and fetch the update."""
        view = self._until_worked(round_id)
        refused = _refusal_of(view)
        if refused is not None:
            return refused
        try:
            reply = self._retrying(lambda: self.client.send("POST", f"/v1/rounds/{round_id}/update"))
        except SiteServiceError:
            refused = _refusal_of(_mapping(self._ask("GET", f"/v1/rounds/{round_id}")))
            if refused is None:
                raise
            return refused  # halted in between
        return Finished(
            round_id=round_id,
            content=reply.content,
            samples=int(view["samples"]),
            metrics=view["metrics"],
            train_seconds=float(view["train_seconds"] or 0.0),
            receipt_sha256=reply.headers.get("X-Receipt", ""),
            signature=reply.headers.get("X-Signature", ""),
            statement=_mapping(self._ask("GET", f"/v1/rounds/{round_id}/statement")),
        )

    def _store(
        self, where: str, digest: str, asked: Mapping[str, Any], content: Content, base: str = ""
    ) -> None:
        """Store what a round that the site admits begins with; unasked it would take none."""
        names = ("plan_sha256", "kind", "number", "model_sha256")
        query = urlencode({**{name: asked[name] for name in names}, **({"base": base} if base else {})})
        self._retrying(lambda: self.client.send("PUT", f"/v1/{where}/{digest}?{query}", content))

    def _until_decided(self, ask: Callable[[], Mapping[str, Any]], wait_s: float) -> Refused | None:
        deadline, pause = time.monotonic() + wait_s, POLL_S
        while True:
            decision = ask()
            if decision["standing"] == "admitted":
                return None
            if decision["standing"] != "pending":
                return Refused(str(decision["code"]), str(decision["message"]))
            if time.monotonic() >= deadline:
                return Refused("not_approved", "nobody approved the plan in time")
            pause = self._pause(pause)

    def _until_worked(self, round_id: str) -> dict[str, Any]:
        """Watch the row until it is done or dead; a time-out of the coordinator comes as the abort signal."""
        before, began = None, time.monotonic()
        while True:
            view = _mapping(self._ask("GET", f"/v1/rounds/{round_id}"))
            if view["progress"] != before:
                before = view["progress"]
                self.came_on()
            if view["state"] in {"done", "dead"} or view["halted"]:
                return view
            least, most = WORK_POLL_S
            self._pause(min(max(least, WORK_POLL_SHARE * (time.monotonic() - began)), most))

    def _pause(self, pause: float) -> float:
        if self.aborted():
            raise AbortedError
        time.sleep(pause)
        return min(pause * 1.2, LONGEST_POLL_S)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._retrying(lambda: self.client.json(method, path, body))

    def _retrying(self, ask: Callable[[], Any]) -> Any:
        """Ask again while the service is away: it is restarted by the node's supervisor."""
        deadline, pause = time.monotonic() + SERVICE_AWAY_S, POLL_S
        while True:
            if self.aborted():
                raise AbortedError
            try:
                return ask()
            except SiteServiceError as error:
                if not error.retryable or time.monotonic() >= deadline:
                    raise
            pause = self._pause(pause)


def _refusal_of(view: Mapping[str, Any]) -> Refused | None:
    """Return why a round that was worked on gives nothing; None when it gives its update."""
    if view["halted"]:
        return Refused(str(view["halted"]), "the site's people stopped the round, or its plan expired")
    if view["state"] != "done":
        return Refused("round_failed", str(view["reason"] or "the local round failed")[:300])
    return None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SiteServiceError("expected an object from the research zone", retryable=False)
    return value
