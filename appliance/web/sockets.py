"""Open panel sockets by session, so that signing out or expiry closes them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SESSION_ENDED: Final = 4401  # application close code: the session ended


class OpenSockets:
    """The sockets of this process; used on the event loop only."""

    def __init__(self) -> None:
        self._closing: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._tokens: dict[str, str] = {}

    @contextmanager
    def opened(self, session: str, token: str) -> Iterator[asyncio.Event]:
        """Register a socket of a session; the event is set when it must close."""
        self._tokens[session] = token
        closing = asyncio.Event()
        self._closing[session].add(closing)
        try:
            yield closing
        finally:
            self._closing[session].discard(closing)
            if not self._closing[session]:
                del self._closing[session]
                del self._tokens[session]

    def sessions(self) -> dict[str, str]:
        """Return the sessions that have sockets, with their tokens."""
        return dict(self._tokens)

    def count(self) -> int:
        """Return the number of open sockets."""
        return sum(len(events) for events in self._closing.values())

    def close(self, session: str) -> int:
        """Close all sockets of a session; return how many there were."""
        events = self._closing.get(session, set())
        for event in events:
            event.set()
        return len(events)


def closable(receive: Receive, send: Send, closing: asyncio.Event) -> Receive:
    """Wrap a websocket's ``receive`` so that it ends with a close frame once ``closing`` is set."""

    async def receive_or_close() -> Message:
        incoming = asyncio.ensure_future(receive())
        ending = asyncio.ensure_future(closing.wait())
        try:
            await asyncio.wait({incoming, ending}, return_when=asyncio.FIRST_COMPLETED)
            if incoming.done():
                return incoming.result()
            await send({"type": "websocket.close", "code": SESSION_ENDED, "reason": "session ended"})
            return {"type": "websocket.disconnect", "code": SESSION_ENDED, "reason": "session ended"}
        finally:
            for task in (incoming, ending):
                task.cancel()

    return receive_or_close
