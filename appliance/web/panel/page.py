"""What a panel page is: who may see it, how its view is read, how it is drawn, what can be done on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from markupsafe import Markup

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.auth.rights import Right
    from appliance.web.desk import Desk, Viewer

V = TypeVar("V")
Drawing = Mapping[str, Markup]  # section name -> what stands there, in order of appearance


class NotThereError(ApplianceError):
    """The row that a page shows does not exist (any more)."""


class ActionRefusedError(ApplianceError):
    """An action cannot be done; the message is for the person who asked."""


@dataclass(frozen=True)
class Query:
    """What stands in a page's address: path and query parameters."""

    values: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, *, length: int = 100) -> str:
        """Return a parameter's printable characters, ``length`` at most; empty when absent."""
        value = self.values.get(name, "")[: 4 * length]
        return "".join(character for character in value if character.isprintable()).strip()[:length]

    def number(self, name: str, default: int = 1, *, low: int = 1, high: int = 100_000) -> int:
        """Return a whole number within bounds, ``default`` when it is none."""
        value = self.values.get(name, "")
        return (
            min(max(int(value), low), high)
            if value.isascii() and value.isdecimal() and len(value) < 9
            else default
        )


@dataclass(frozen=True)
class Told:
    """What an action answers to the request that asked, and to nothing else: a socket gets the message."""

    message: str
    content: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True)
class Action:
    """Something a person does on a page; runs off the event loop, returns what to say.

    ``refused`` writes down that a person asked who lacks the right.
    """

    right: Right
    run: Callable[[Desk, Viewer, Mapping[str, str]], str | Told]
    refused: Callable[[Desk, Viewer], None] | None = None


@dataclass(frozen=True)
class Page(Generic[V]):
    """One page of the panel."""

    path: str
    title: str
    right: Right
    load: Callable[[Desk, Viewer, Query], V]
    draw: Callable[[V, Viewer], Drawing]
    actions: Mapping[str, Action] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()  # names of static files, beside those of every page
    menu: str = ""  # the menu entry that is lit; empty: this page's own path
    refresh_s: float = 2.0
