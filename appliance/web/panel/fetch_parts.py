"""What the list of fetches and the page of one have in common."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance.web.panel.markup import count, el
from appliance.web.panel.page import ActionRefusedError
from appliance.web.panel.parts import Ask, badge, button, stack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup

    from appliance.fetch_views import FetchRow
    from appliance.fetching import Manner

DONE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "start": "Started.",
        "pause": "Paused: what is on its way is taken back.",
        "resume": "It goes on.",
        "cancel": "Cancelled; what has come stays.",
    }
)
_TONES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "looking": ("info", "asks"),
        "listed": ("warn", "to be started"),
        "running": ("info", "pulls"),
        "paused": ("idle", "paused"),
        "done": ("ok", "done"),
        "failed": ("bad", "failed"),
        "cancelled": ("idle", "cancelled"),
    }
)
_BUTTONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "looking": ("cancel",),
        "listed": ("start", "cancel"),
        "running": ("pause", "cancel"),
        "paused": ("resume", "cancel"),
        "failed": ("resume",),
    }
)


def state(row: FetchRow) -> Markup:
    """Draw the state."""
    tone, text = _TONES.get(row.state, ("idle", row.state))
    return badge(row.state, tone=tone, text=text)


def what(row: FetchRow) -> Markup:
    """Draw what is fetched: keys, with their values for those who may see them, and how."""
    if row.match:
        keys = ", ".join(f"{keyword} {value}" for keyword, value in row.match.items())
    else:
        keys = ", ".join(row.keys)
    manner = [{"move": "C-MOVE", "get": "C-GET", "web": "DICOMweb"}.get(row.method, row.method)]
    if row.hours != "always":
        manner.append(row.hours)
    if row.pause_s:
        manner.append(f"a pause of {row.pause_s:g} s")
    if row.per_hour:
        manner.append(f"{row.per_hour} an hour")
    head = el("span", "Priors: " if row.priors else "", keys)
    return stack(head, el("small", ", ".join(manner)))


def progress(row: FetchRow) -> Markup:
    """Draw how many of its studies have come."""
    if not row.studies:
        return el("span", "no study matches" if row.state in {"listed", "done"} else "")
    if row.state == "listed":
        size = f", {count(row.instances, 'instance')}" if row.instances is not None else ""
        here = f"; {row.here} here already" if row.here else ""
        return el("span", f"{count(row.studies, 'study', 'studies')} match{size}{here}")
    of = f" of {row.instances}" if row.instances is not None else ""
    failed = f", {row.failed} not whole" if row.failed else ""
    return stack(
        el("span", f"{row.done} of {count(row.studies, 'study', 'studies')}{failed}"),
        el("small", f"{row.received}{of} instances"),
    )


def buttons(row: FetchRow, *, first: bool = False) -> Markup:
    """Draw what can be done with it now, or the first of that alone."""
    names = _BUTTONS.get(row.state, ("resume",) if row.failed and row.state == "done" else ())
    names = names[:1] if first else names
    return el("div", [_button(row, name) for name in names], class_="buttons")


def _button(row: FetchRow, name: str) -> Markup:
    if name == "start":
        ask = Ask(f"Pull {count(row.studies, 'study', 'studies')} from {row.peer}?")
        return button("start", "Start", ask=ask, style="primary", described=row.peer, id=row.id)
    if name == "cancel":
        ask = Ask("Cancel this fetch? What has come stays.")
        return button("cancel", "Cancel", ask=ask, style="danger", described=row.peer, id=row.id)
    return button(name, name.capitalize(), described=row.peer, id=row.id)


def manner_of(fields: Mapping[str, str]) -> Manner:
    """Read how a fetch is to go about it."""
    from appliance import fetching  # noqa: PLC0415 - loaded with the first order

    return fetching.Manner(
        method=fields.get("method", "").strip(),
        hours=fields.get("hours", "").strip(),
        pause_s=float(number(fields, "pause_s")),
        per_hour=number(fields, "per_hour"),
        at_once=fields.get("at_once") == "yes",
    )


def number(fields: Mapping[str, str], name: str, default: int = 0) -> int:
    """Read a whole number; refuse what is none."""
    text = fields.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise ActionRefusedError(f"Not done: {name}: expected a whole number.")
    return int(text)


def guarded(run: Callable[[], Any]) -> None:
    """Do it, or say why not."""
    from appliance.archives import FetchError  # noqa: PLC0415 - as above
    from appliance.peers import PeerError  # noqa: PLC0415 - as above

    try:
        run()
    except (FetchError, PeerError) as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
