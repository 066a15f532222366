"""The few parts that every page is made of: badges, cards, tables, facts, buttons, empty states."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from appliance.web.panel.markup import DASH, EMPTY, el, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from markupsafe import Markup

# One tone for one meaning, everywhere. Text always stands beside the colour.
TONES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "receiving": "info",
        "assembled": "ok",
        "quarantined": "warn",
        "released": "ok",
        "partial": "warn",
        "queued": "idle",
        "running": "info",
        "done": "ok",
        "failed": "warn",
        "dead": "bad",
        "delivered": "ok",
        "withheld": "idle",
        "candidate": "info",
        "evaluated": "info",
        "shadow": "warn",
        "active": "ok",
        "retired": "idle",
        "refused": "bad",
        "pending": "warn",
        "approved": "ok",
        "suspended": "warn",
        "paused": "warn",
        "left": "bad",
        "enabled": "ok",
        "disabled": "idle",
        "locked": "warn",
        "open": "warn",
        "reviewed": "ok",
        "filed": "ok",
        "discarded": "idle",
        "well": "ok",
        "needs attention": "bad",
        "stopped": "bad",
        "superseded": "idle",
    }
)

# Stands before the names of inputs: the sanitizer drops names that a form has as properties, such as "name".
FIELD: Final = "field-"

_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {"failed": "will retry", "dead": "stopped", "partial": "partly released"}
)


def badge(state: str, *, tone: str | None = None, text: str | None = None) -> Markup:
    """Draw a state as text with its colour and sign."""
    return el("span", text or _WORDS.get(state, state), class_=f"badge {tone or TONES.get(state, 'idle')}")


def code(value: str, *, length: int = 12) -> Markup:
    """Draw an id or a hash, shortened, whole in its title."""
    if not value:
        return el("span", DASH, class_="none")
    return el("code", value[:length], title=value if len(value) > length else None)


def link(href: str, *children: object, class_: str | None = None) -> Markup:
    """Draw a link inside the panel."""
    return el("a", *children, href=href, class_=class_)


def url(path: str, **parameters: object) -> str:
    """Build an address inside the panel, empty parameters left out."""
    kept = {key: value for key, value in parameters.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


def card(title: str, *body: object, aside: object = None, class_: str = "", id_: str | None = None) -> Markup:
    """Draw a titled region."""
    head = el("header", el("h2", title), el("div", aside, class_="aside") if aside else None)
    return el(
        "section",
        head,
        el("div", *body, class_="body"),
        class_=f"card {class_}".strip(),
        id=id_,
        aria_label=title,
    )


def page_head(
    title: str,
    *aside: object,
    lead: object = None,
    back: tuple[str, str] | None = None,
    marks: object = None,
) -> Markup:
    """Draw a page's heading, with a way back and what can be done here."""
    way = link(back[0], f"← {back[1]}", class_="back") if back else None
    heading = el("div", el("h1", title), marks, class_="title")
    words = el("div", way, heading, el("p", lead, class_="lead") if lead else None)
    return el("div", words, el("div", *aside, class_="aside") if aside else None, class_="page-head")


def facts(rows: Iterable[tuple[str, object]]) -> Markup:
    """Draw terms and their values."""
    return el("dl", ((el("dt", term), el("dd", value)) for term, value in rows), class_="facts")


@dataclass(frozen=True)
class Column:
    """A table's column; ``kind`` is a CSS class: ``number``, ``wide``, ``tight`` or empty."""

    title: str
    kind: str = ""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    empty: Markup = EMPTY,
    compact: bool = False,
) -> Markup:
    """Draw a table in a box that scrolls by itself; without rows, what to do next.

    On a narrow screen each row becomes a block with the column titles beside the values; a ``compact`` table
    of few short columns stays a table.
    """
    if not rows:
        return empty
    head = el("tr", (el("th", column.title, scope="col", class_=column.kind or None) for column in columns))
    body = (
        el("tr", (_cell(column, cell) for column, cell in zip(columns, row, strict=True))) for row in rows
    )
    whole = el(
        "table",
        el("caption", caption, class_="hidden"),
        el("thead", head),
        el("tbody", body),
        class_="compact" if compact else None,
    )
    return el("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _cell(column: Column, cell: object) -> Markup:
    return el("td", el("div", cell), class_=column.kind or None, data_title=column.title or None)


def nothing(title: str, *advice: object) -> Markup:
    """Draw an empty state: what is not there yet, and what to do next."""
    return el("div", el("p", title, class_="title"), el("p", *advice) if advice else None, class_="nothing")


def notice(tone: str, *children: object) -> Markup:
    """Draw a message that stays."""
    return el("div", *children, class_=f"notice {tone}", role="alert" if tone == "bad" else None)


def tile(
    label: str, value: object, *, note: object = None, href: str | None = None, tone: str = ""
) -> Markup:
    """Draw one figure with its meaning."""
    inner = (
        el("span", label, class_="label"),
        el("span", value, class_="value"),
        el("span", note, class_="note") if note else None,
    )
    name = f"tile {tone}".strip()
    return link(href, *inner, class_=name) if href else el("div", *inner, class_=name)


def meter(label: str, share: float, text: str, *, tone: str = "ok") -> Markup:
    """Draw a share between 0 and 1 as a bar with its text."""
    percent = round(max(0.0, min(1.0, share)) * 100)
    bar = el(
        "span", el("span", class_=f"fill {tone}", style=f"width:{percent}%"), class_="bar", aria_hidden="true"
    )
    return el("div", el("span", label), bar, el("span", text, class_="text"), class_="meter")


@dataclass(frozen=True)
class Ask:
    """What the confirmation dialog says before an action, and the text that it asks for."""

    question: str
    reason: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


def button(
    action: str, label: str, *, ask: Ask | None = None, style: str = "", described: str = "", **fields: str
) -> Markup:
    """Draw a button that sends an action with its fields to the panel's one event handler."""
    data: dict[str, object] = {f"data_field_{key}": value for key, value in fields.items()}
    if ask is not None:
        data |= {"data_confirm": ask.question, "data_reason": ask.reason or None}
    identity = "-".join(("act", action, *fields.values()))[:80]
    return el(
        "button",
        label,
        type="button",
        id=identity,
        class_=f"button {style}".strip(),
        data_action=action,
        aria_label=f"{label}: {described}" if described else None,
        **data,
    )


def opener(dialog_id: str, label: str, *, style: str = "") -> Markup:
    """Draw a button that opens a dialog of this page."""
    return el(
        "button",
        label,
        type="button",
        class_=f"button {style}".strip(),
        data_opens=dialog_id,
        id=f"open-{dialog_id}",
    )


def dialog(
    id_: str, title: str, action: str, *body: object, submit: str, lead: object = None, **fields: str
) -> Markup:
    """Draw a dialog with a form that sends an action."""
    hidden = [el("input", type="hidden", name=FIELD + key, value=value) for key, value in fields.items()]
    buttons = el(
        "div",
        el("button", "Cancel", type="button", class_="button", data_closes=id_),
        el("button", submit, type="submit", class_="button primary"),
        class_="buttons",
    )
    form = el(
        "form",
        hidden,
        el("h2", title, id=f"{id_}-title"),
        el("p", lead) if lead else None,
        *body,
        buttons,
        data_action=action,
    )
    return el("dialog", form, id=id_, aria_labelledby=f"{id_}-title")


def text_field(
    name: str,
    label: str,
    *,
    hint: str = "",
    kind: str = "text",
    value: str = "",
    required: bool = True,
    prefix: str = FIELD,
    **more: object,
) -> Markup:
    """Draw a labelled text input; in a form of filters with an empty ``prefix``."""
    control = el(
        "input",
        type=kind,
        name=prefix + name,
        value=value or None,
        required=required,
        autocomplete="off",
        **more,
    )
    return el("label", el("span", label), control, el("small", hint) if hint else None, class_="field")


def check_field(
    name: str, label: str, *, checked: bool = False, hint: str = "", value: str = "yes"
) -> Markup:
    """Draw a labelled checkbox."""
    control = el("input", type="checkbox", name=FIELD + name, value=value, checked=checked)
    return el("label", control, el("span", label, el("small", hint) if hint else None), class_="check")


def select_field(
    name: str, label: str, options: Sequence[tuple[str, str]], chosen: str = "", *, prefix: str = FIELD
) -> Markup:
    """Draw a labelled select; in a form of filters with an empty ``prefix``."""
    items = (el("option", text, value=value, selected=value == chosen) for value, text in options)
    return el("label", el("span", label), el("select", items, name=prefix + name), class_="field")


def filters(path: str, *fields: object, submit: str = "Filter") -> Markup:
    """Draw a filter form: it changes the address, so that a view can be shared and gone back to."""
    return el(
        "form",
        *fields,
        el("button", submit, type="submit", class_="button"),
        method="get",
        action=path,
        class_="filters",
        role="search",
    )


def pager(path: str, page: int, pages: int, **parameters: object) -> Markup:
    """Draw the way to earlier and later pages of a list."""
    if pages <= 1:
        return EMPTY
    before = link(url(path, page=page - 1, **parameters), "← Newer", class_="button") if page > 1 else None
    after = link(url(path, page=page + 1, **parameters), "Older →", class_="button") if page < pages else None
    return el("nav", before, el("span", f"Page {page} of {pages}"), after, class_="pager", aria_label="Pages")


def grid(*children: object, class_: str = "") -> Markup:
    """Lay cards side by side where there is room."""
    return el("div", *children, class_=f"grid {class_}".strip())


def stack(*children: object) -> Markup:
    """Lay lines of one cell below one another."""
    return join(el("div", child) for child in children if child)
