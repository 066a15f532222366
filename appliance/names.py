"""Host names of peers, resolved in a thread of its own: a resolver that hangs holds nobody up."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TTL_S: Final = 60.0
RETRY_S: Final = 5.0  # after a failure

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def as_network(host: str) -> Network | None:
    """Return an address or a network in CIDR form; None for what is a name."""
    try:
        return ipaddress.ip_network(host, strict=False)
    except ValueError:
        return None


def resolve(name: str) -> tuple[Network, ...]:
    """Ask the system's resolver.

    Raises
    ------
    OSError
        If the name has no address now, or the resolver cannot say.
    UnicodeError
        If it cannot be a host name at all.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(ipaddress.ip_network(str(info[4][0]).partition("%")[0]) for info in found)


@dataclass(frozen=True)
class _Answer:
    networks: tuple[Network, ...] | None  # None until the name was resolved once
    due_at: float  # monotonic


class Names:
    """Addresses of the names that are wanted; a failure leaves the last good answer in place.

    Parameters
    ----------
    lookup : callable
        Resolves one name, see :func:`resolve`.
    ttl_s, retry_s : float
        When to ask again after an answer, and after a failure.
    """

    def __init__(
        self,
        lookup: Callable[[str], tuple[Network, ...]] = resolve,
        ttl_s: float = TTL_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._lookup = lookup
        self._ttl_s = ttl_s
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._answers: dict[str, _Answer] = {}

    def start(self) -> None:
        """Resolve from now on, until the process ends."""
        threading.Thread(target=self._run, name="names", daemon=True).start()

    def want(self, names: Iterable[str]) -> None:
        """Resolve these names and forget all others."""
        wanted = set(names)
        with self._changed:
            if wanted != self._answers.keys():
                at_once = _Answer(None, time.monotonic())
                self._answers = {name: self._answers.get(name, at_once) for name in wanted}
                self._changed.notify()

    def remember(self, name: str, networks: tuple[Network, ...]) -> None:
        """Take an answer of an earlier process until there is a new one."""
        with self._changed:
            self._answers.setdefault(name, _Answer(networks, time.monotonic()))
            self._changed.notify()

    def networks(self, name: str) -> tuple[Network, ...] | None:
        """Return the last good answer; None while there was none."""
        with self._changed:
            answer = self._answers.get(name)
        return None if answer is None else answer.networks

    def _run(self) -> None:
        while True:
            name = self._next()
            try:
                found = self._lookup(name)
            except (OSError, UnicodeError):
                self._keep(name, None, self._retry_s)
            else:
                self._keep(name, found, self._ttl_s)

    def _next(self) -> str:
        """Wait until a name is due and return it."""
        with self._changed:
            while True:
                due = {name: answer.due_at for name, answer in self._answers.items()}
                first = min(due, key=due.__getitem__, default=None)
                left_s = None if first is None else due[first] - time.monotonic()
                if first is not None and left_s is not None and left_s <= 0:
                    return first
                self._changed.wait(left_s)

    def _keep(self, name: str, networks: tuple[Network, ...] | None, again_in_s: float) -> None:
        with self._changed:
            before = self._answers.get(name)
            if before is not None:  # else it is not wanted any more
                kept = before.networks if networks is None else networks
                self._answers[name] = _Answer(kept, time.monotonic() + again_in_s)
